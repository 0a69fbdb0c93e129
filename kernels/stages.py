"""The loss in three stages over class ranges: local partials → combine → local gradients.

A head that is held whole runs the three in a row. A head whose classes are sharded runs the first on each range
(`Kernel.local_partials`), passes the partials of all ranges in class order to `rlpheads.kernels.row_softmax.combine`,
and runs the last on each range again: `local_feature_gradient`, to be summed over the ranges before it is attached, and
`attach_class_gradients`, whose result is the range's own. The two `attach_*` functions hold the rule of who trains whom:
a loss reaches either the head or the features, never both.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlpheads.kernels import tiled_cpu
from rlpheads.kernels.partials import ClassRange, Exponentials, LogitGradient, Needs, Partials, Products
from rlpheads.kernels.row_softmax import RowSoftmax
from rlpheads.kernels.terms import Coefficients


class Kernel(Protocol):
    """What an implementation provides; `rlpheads.kernels.tiled_cpu` documents the arguments."""

    def local_partials(
        self, features_BD: Tensor, head: ClassRange, labels_LB: Tensor, needs: Needs
    ) -> tuple[Partials, Products, Exponentials]:
        """First stage: reduce a class range to `Partials`, and keep what its own gradients need."""

    def local_class_gradients(
        self,
        features_BD: Tensor,
        head: ClassRange,
        labels_LB: Tensor,
        exponentials: Exponentials,
        gradient: LogitGradient,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Last stage: gradients of the range's weight and bias, each None unless wanted."""


KERNELS: dict[str, Kernel] = {"tiled_cpu": tiled_cpu}
"""The implementations by their name."""


def local_feature_gradient(
    head: ClassRange, rows: RowSoftmax, coefficients: Coefficients, partials: Partials, products: Products
) -> Tensor:
    """The range's part of each row's dL/dx: (B, D) in the accumulation dtype.

    A combination of what the first stage summed over the classes, so that no class is visited again but the labels'.
    """
    offset_B = partials.shift_B - rows.shift_B
    factor_B = offset_B.exp()
    exp_B = coefficients.exp_B
    if coefficients.moment_B is not None:
        exp_B = exp_B + offset_B * coefficients.moment_B
    gradient_BD = (factor_B * exp_B)[:, None] * products.exp_weight_BD
    if coefficients.moment_B is not None:
        gradient_BD = torch.addcmul(gradient_BD, (factor_B * coefficients.moment_B)[:, None], products.moment_weight_BD)
    if coefficients.uniform:
        gradient_BD = gradient_BD + coefficients.uniform * products.weight_sum_D
    for index_B, label_B in zip(rows.labels.index_LB - head.start, coefficients.label_LB, strict=True):
        inside_B = (index_B >= 0) & (index_B < len(head.weight_KD))
        weight_BD = head.weight_KD.index_select(0, index_B.clamp(0, len(head.weight_KD) - 1)).to(gradient_BD.dtype)
        gradient_BD = torch.addcmul(gradient_BD, torch.where(inside_B, label_B, 0)[:, None], weight_BD)
    return gradient_BD


def attach_feature_gradient(features_BD: Tensor, value_B: Tensor, gradient_BD: Tensor) -> Tensor:
    """`value_B` as a function of the features alone, with this gradient in each row."""
    return _FeatureRoute.apply(features_BD, value_B, gradient_BD)


def attach_class_gradients(
    value_B: Tensor,
    features_BD: Tensor,
    head: ClassRange,
    rows: RowSoftmax,
    coefficients: Coefficients,
    exponentials: Exponentials,
    impl: str,
) -> Tensor:
    """`value_B` as a function of the range's weight and bias alone; their gradients are computed in backward."""
    gradient = LogitGradient(
        coefficients.exp_B * torch.exp(exponentials.tile_shift_CB - rows.shift_B), coefficients.label_LB
    )
    saved = (features_BD, rows.labels.index_LB, *exponentials, *gradient)
    return _ClassRoute.apply(head.weight_KD, head.bias_K, value_B, head.start, head.num_labels, impl, *saved)


class _FeatureRoute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_BD: Tensor, value_B: Tensor, gradient_BD: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_BD)
        ctx.dtype = features_BD.dtype
        return value_B.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_B: Tensor) -> tuple[Tensor, None, None]:
        (gradient_BD,) = ctx.saved_tensors
        return (upstream_B[:, None] * gradient_BD).to(ctx.dtype), None, None


class _ClassRoute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight_KD: Tensor,
        bias_K: Tensor | None,
        value_B: Tensor,
        start: int,
        num_labels: int,
        impl: str,
        *saved: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(weight_KD, bias_K, *saved)
        ctx.range, ctx.impl = (start, num_labels), impl
        return value_B.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_B: Tensor) -> tuple[Tensor | None, ...]:
        weight_KD, bias_K, features_BD, labels_LB, flat, tile_shift_CB, scale_CB, label_LB = ctx.saved_tensors
        head = ClassRange(weight_KD, bias_K, *ctx.range)
        gradient = LogitGradient(upstream_B * scale_CB, upstream_B * label_LB)
        gradients = KERNELS[ctx.impl].local_class_gradients(
            features_BD, head, labels_LB, Exponentials(flat, tile_shift_CB), gradient, ctx.needs_input_grad[:2]
        )
        return (*gradients, *[None] * 10)
