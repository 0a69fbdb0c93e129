"""The loss in three stages over class ranges: local partials → merge → local gradients.

A head that is held whole runs the three in a row. A head whose classes are sharded runs the first on each range
(`Kernel.local_partials`), passes the partials of all ranges in class order to
`rlpheads.kernels.rows.row_softmax.merge_partials`, and runs the last on each range again: `local_feature_gradient`, to be
summed over the ranges before it is attached, and `attach_class_gradients`, whose result is the range's own. The two
`attach_*` functions route the gradients: a loss reaches either the head or the features, never both.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.cpu import tiled_cpu
from rlpheads.kernels.first_derivative import refuse_second_derivative, save_with_anchor
from rlpheads.kernels.gpu import triton_loss
from rlpheads.kernels.gpu.heads.kept_operands import KeptOperands
from rlpheads.kernels.gpu.heads.kept_stages import KeptStages
from rlpheads.kernels.rows import reference_stages
from rlpheads.kernels.rows.kernel import Kernel
from rlpheads.kernels.rows.partials import ClassRange, Exponentials, LogitGradient, Partials, Products
from rlpheads.kernels.rows.row_softmax import RowSoftmax, by_head
from rlpheads.kernels.rows.terms import Coefficients

KERNELS: dict[str, Kernel] = {"reference": reference_stages, "tiled_cpu": tiled_cpu, "triton": triton_loss}
"""The implementations of the local stages by their name."""


def kernel_that_keeps(name: str, kept: KeptOperands | None) -> Kernel:
    """Return the implementation of a name, with weights in the products' dtype that are kept from pass to pass, if given."""
    return KeptStages(kept) if name == "triton" and kept is not None else KERNELS[name]


class LocalHead(NamedTuple):
    """Features, class range and kept exponentials of one head: what its class gradients are computed from."""

    features_BD: Tensor
    """Outside every graph."""
    head: ClassRange
    exponentials: Exponentials


def local_feature_gradient(
    head: ClassRange,
    labels_LB: Tensor,
    shift_B: Tensor,
    coefficients: Coefficients,
    partials: Partials,
    products: Products,
) -> Tensor:
    """The range's part of each row's dL/dx: (B, D) in the accumulation dtype; `shift_B` is that of the merged rows.

    A combination of what the first stage summed over the classes, so that no class is visited again but the labels'.
    """
    offset_B = partials.shift_B - shift_B
    factor_B = offset_B.exp()
    exp_B = coefficients.exp_B
    if coefficients.moment_B is not None:
        exp_B = exp_B + offset_B * coefficients.moment_B
    # Where the range holds no class but the row's labels the sum is 0, and exp_B may be infinite.
    gradient_BD = torch.where(factor_B == 0, 0, factor_B * exp_B)[:, None] * products.exp_weight_BD
    if coefficients.moment_B is not None:
        gradient_BD = torch.addcmul(gradient_BD, (factor_B * coefficients.moment_B)[:, None], products.moment_weight_BD)
    if coefficients.uniform:
        gradient_BD = gradient_BD + coefficients.uniform * products.weight_sum_D
    for number, (index_B, label_B) in enumerate(zip(labels_LB - head.start, coefficients.label_LB, strict=True)):
        if products.label_weight_LBD is not None:
            gradient_BD = torch.addcmul(gradient_BD, label_B[:, None], products.label_weight_LBD[number])
            continue
        inside_B = (index_B >= 0) & (index_B < len(head.weight_KD))
        weight_BD = head.weight_KD.index_select(0, index_B.clamp(0, len(head.weight_KD) - 1))
        weight_BD = weight_BD.to(products.operand_dtype or weight_BD.dtype).to(gradient_BD.dtype)
        gradient_BD = torch.addcmul(gradient_BD, torch.where(inside_B, label_B, 0)[:, None], weight_BD)
    return gradient_BD


def attach_feature_gradient(value_B: Tensor, features: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """`value_B` as a function of the features alone, with these gradients in the rows.

    The rows are those of all heads, one head after another, each with features (B, D) and gradient (B, D) of its own.
    Heads may read the same features.
    """
    distinct: list[Tensor] = []
    read_by_head = []
    for features_BD in features:
        places = [place for place, other_BD in enumerate(distinct) if other_BD is features_BD]
        read_by_head.append(places[0] if places else len(distinct))
        if not places:
            distinct.append(features_BD)
    attached_B, _ = _FeatureRoute.apply(value_B, tuple(read_by_head), *distinct, *gradients)
    return attached_B


def attach_class_gradients(
    value_B: Tensor, heads: Sequence[LocalHead], rows: RowSoftmax, coefficients: Coefficients, kernel: Kernel
) -> Tensor:
    """`value_B` as a function of the heads' weights and biases alone; `kernel` computes their gradients in backward.

    The rows are those of all heads, one head after another.
    """
    saved: list[_SavedHead] = []
    for local, shift_B, exp_B, label_LB, labels_LB in zip(
        heads,
        by_head(rows.shift_B, len(heads)),
        by_head(coefficients.exp_B, len(heads)),
        by_head(coefficients.label_LB, len(heads)),
        by_head(rows.labels.index_LB, len(heads)),
        strict=True,
    ):
        scale_CB = exp_B * torch.exp(local.exponentials.tile_shift_CB - shift_B)
        kept, classes = local.exponentials, local.head
        head = _SavedHead(
            classes.weight_KD,
            classes.bias_K,
            local.features_BD,
            labels_LB,
            kept.flat,
            kept.tile_shift_CB,
            kept.tile_base_CB,
            scale_CB,
            label_LB,
        )
        saved.append(head)
    ranges = [(local.head.start, local.head.num_labels) for local in heads]
    attached_B, _ = _ClassRoute.apply(value_B, ranges, kernel, *chain.from_iterable(saved))
    return attached_B


class _FeatureRoute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value_B: Tensor, read_by_head: Sequence[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        num_distinct = len(tensors) - len(read_by_head)
        ctx.read_by_head = read_by_head
        ctx.dtypes = [features_BD.dtype for features_BD in tensors[:num_distinct]]
        return save_with_anchor(ctx, (value_B.clone(),), *tensors[num_distinct:])

    @staticmethod
    @refuse_second_derivative
    def backward(ctx: Any, saved: Sequence[Tensor], upstream_B: Tensor) -> tuple[Tensor | None, ...]:
        num_heads = len(ctx.read_by_head)
        sums: list[Tensor | None] = [None] * len(ctx.dtypes)
        for place, upstream_of_head_B, gradient_BD in zip(
            ctx.read_by_head, by_head(upstream_B, num_heads), saved, strict=True
        ):
            sum_BD, upstream_B1 = sums[place], upstream_of_head_B[:, None]
            sums[place] = upstream_B1 * gradient_BD if sum_BD is None else sum_BD.addcmul(upstream_B1, gradient_BD)
        of_features = [sum_BD.to(dtype) for sum_BD, dtype in zip(sums, ctx.dtypes, strict=True) if sum_BD is not None]
        return (None, None, *of_features, *[None] * num_heads)


class _SavedHead(NamedTuple):
    """What the class gradients of one head need; a route's inputs are those of all heads, as autograd takes tensors alone."""

    weight_KD: Tensor
    bias_K: Tensor | None
    features_BD: Tensor
    labels_LB: Tensor
    flat: Tensor
    tile_shift_CB: Tensor
    tile_base_CB: Tensor | None
    scale_CB: Tensor
    """dL/dz over the exponentials, for an upstream of 1."""
    label_LB: Tensor
    """dL/dz at the labels."""

    @property
    def exponentials(self) -> Exponentials:
        """As far as they were kept."""
        return Exponentials(self.flat, self.tile_shift_CB, self.tile_base_CB)


class _ClassRoute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value_B: Tensor, ranges: Sequence[tuple[int, int]], kernel: Kernel, *saved: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.ranges, ctx.kernel = ranges, kernel
        return save_with_anchor(ctx, (value_B.clone(),), *saved)

    @staticmethod
    @refuse_second_derivative
    def backward(ctx: Any, saved: Sequence[Tensor], upstream_B: Tensor) -> tuple[Tensor | None, ...]:
        size, needed = len(_SavedHead._fields), ctx.needs_input_grad[3:]
        gradients: list[Tensor | None] = []
        for number, upstream_of_head_B in enumerate(by_head(upstream_B, len(ctx.ranges))):
            head = _SavedHead(*saved[number * size :][:size])
            gradients += ctx.kernel.local_class_gradients(
                head.features_BD,
                ClassRange(head.weight_KD, head.bias_K, *ctx.ranges[number]),
                head.labels_LB,
                head.exponentials,
                LogitGradient(upstream_of_head_B * head.scale_CB, upstream_of_head_B * head.label_LB),
                needed[number * size :][:2],  # weight and bias
            )
            gradients += [None] * (size - 2)
        return (None, None, None, *gradients)
