"""Heads in groups that share their launches: equal in widths and dtypes, their rows and classes one after another in memory.

A group's weights are written one after another in the products' dtype, a cast that is made anyway.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.first_derivative import refuse_second_derivative, save_with_anchor
from rlpheads.kernels.gpu.heads.kept_operands import KeptOperands, stack_weights
from rlpheads.kernels.gpu.slab_plan import SlabPlan
from rlpheads.kernels.gpu.triton_loss import HeadsInMemory, class_gradients
from rlpheads.kernels.rows.kernel import Kernel
from rlpheads.kernels.rows.partials import ClassRange, Exponentials, LogitGradient

STACKED_BYTES = 256 * 2**20
"""Weights of a group, in the dtype of the products, unless one head alone has more."""


class LinearHeads(NamedTuple):
    """Features, weight and bias of each head."""

    features: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor | None]

    def of(self, heads: slice) -> "LinearHeads":
        """Some of the heads, one after another."""
        return LinearHeads(self.features[heads], self.weights[heads], self.biases[heads])

    def kind(self, number: int) -> Hashable:
        """What heads of one group have in common: width and dtypes."""
        features_BD, weight_KD, bias_K = self.features[number], self.weights[number], self.biases[number]
        return features_BD.shape[1], features_BD.dtype, weight_KD.dtype, None if bias_K is None else bias_K.dtype

    def most_together(self, number: int, plan: SlabPlan) -> int:
        """How many heads like this one a group may have: one where its pass takes several slabs."""
        num_bytes = self.weights[number].numel() * self.features[number].dtype.itemsize
        return 1 if plan.num_slabs > 1 else STACKED_BYTES // num_bytes

    def in_memory(self, labels_LR: Tensor, start: int = 0, kept: KeptOperands | None = None) -> HeadsInMemory:
        """One head as it is, several copied side by side: features that all read once, weights in the features' dtype.

        Args:
            labels_LR: labels of the rows of all heads.
            start: label of the first class of each head's range.
            kept: holds the weights in that dtype from one call to the next; None: each call casts them.
        """
        features_BD, weight_KD, bias_K = self.features[0], self.weights[0], self.biases[0]
        if len(self.weights) == 1:
            if kept is not None and weight_KD.dtype != features_BD.dtype:
                weight_KD = kept.stack(self.weights, features_BD.dtype)
            return HeadsInMemory(features_BD, weight_KD, bias_K, labels_LR, start)
        if any(each is not features_BD for each in self.features):
            features_BD = torch.cat(self.features)
        biases = [each for each in self.biases if each is not None]
        return HeadsInMemory(
            features_BD,
            (stack_weights if kept is None else kept.stack)(self.weights, features_BD.dtype),
            torch.cat(biases) if biases else None,
            labels_LR,
            start,
            len(self.weights),
        )


def group_heads(kinds: Sequence[Hashable], most_together: Callable[[int], int]) -> list[slice]:
    """Heads one after another that share their launches.

    Args:
        kinds: of each head what those of a group have in common.
        most_together: by the number of a head, how many like it a group may have.
    """
    groups: list[slice] = []
    for number, kind in enumerate(kinds):
        if number and kind == kinds[number - 1] and number - groups[-1].start < most_together(number):
            groups[-1] = slice(groups[-1].start, number + 1)
        else:
            groups.append(slice(number, number + 1))
    return groups


class Held(NamedTuple):
    """Tensors that a route takes as they are: autograd does not see them, so that they need no copy to become outputs."""

    tensors: tuple[Tensor, ...]


class GroupGradient(NamedTuple):
    """What the gradients of a group's weights and biases are made from."""

    heads: HeadsInMemory
    exponentials: Exponentials
    gradient: LogitGradient
    """dL/dz for an upstream of 1."""

    def of_head(self, number: int, weight_KD: Tensor, bias_K: Tensor | None, num_labels: int) -> "HeadGradientParts":
        """The same of one head, whose range of K classes this weight and bias hold."""
        heads, (kept_RK, shift_CR, base_CR) = self.heads, self.exponentials
        rows = slice(number * heads.num_rows, (number + 1) * heads.num_rows)
        kept_rows = len(kept_RK) // heads.num_heads
        features_BD = heads.features_RD if len(heads.features_RD) == heads.num_rows else heads.features_RD[rows]
        return HeadGradientParts(
            features_BD,
            ClassRange(weight_KD, bias_K, heads.start, num_labels),
            heads.labels_LR[:, rows].contiguous(),
            Exponentials(
                kept_RK[number * kept_rows : (number + 1) * kept_rows],
                shift_CR[:, rows].contiguous(),
                base_CR if base_CR is None or not base_CR.numel() else base_CR[:, rows].contiguous(),
            ),
            LogitGradient(self.gradient.scale_CB[:, rows], self.gradient.label_LB[:, rows]).contiguous(),
        )


class HeadGradientParts(NamedTuple):
    """What `rlpheads.kernels.rows.kernel.Kernel.local_class_gradients` takes of one head."""

    features_BD: Tensor
    head: ClassRange
    labels_LB: Tensor
    exponentials: Exponentials
    gradient: LogitGradient


class LastStage(NamedTuple):
    """Takes the gradients of each head of a group, in place of the launches that make all of them."""

    kernel: Kernel
    num_labels: int
    """K of a whole head."""


def attach_group_classes(
    value_R: Tensor, found: GroupGradient, of: LinearHeads, last_stage: LastStage | None = None
) -> Tensor:
    """`value_R` as a function of the weights and biases of a group's heads, `of`, alone."""
    attached_R, _ = _ClassRoute.apply(Held((value_R,)), found, last_stage, *of.weights, *of.biases)
    return attached_R


class _ClassRoute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, held: Held, found: GroupGradient, last_stage: LastStage | None, *parameters: Tensor | None
    ) -> tuple[Tensor, ...]:
        heads, exponentials, gradient = found
        ctx.start, ctx.num_heads, ctx.last_stage = heads.start, heads.num_heads, last_stage
        ctx.dtypes = [None if parameter is None else parameter.dtype for parameter in parameters]
        # Weights as they lie in memory are read again only where exponentials were not kept.
        own = () if last_stage is None else parameters
        return save_with_anchor(ctx, (held.tensors[0],), *heads[:4], *exponentials, *gradient, *own)

    @staticmethod
    @refuse_second_derivative
    def backward(ctx: Any, saved: Sequence[Any], upstream_R: Tensor) -> tuple[Tensor | None, ...]:
        num_heads, needed = ctx.num_heads, ctx.needs_input_grad[3:]
        features_RD, weight_KD, bias_K, labels_LR, kept_RK, shift_CR, base_CR, scale_CR, label_LR, *own = saved
        found = GroupGradient(
            HeadsInMemory(features_RD, weight_KD, bias_K, labels_LR, ctx.start, num_heads),
            Exponentials(kept_RK, shift_CR, base_CR),
            LogitGradient(upstream_R * scale_CR, upstream_R * label_LR),
        )
        if ctx.last_stage is None:
            return (None, None, None, *_made_together(found, ctx.dtypes, needed))
        return (None, None, None, *_made_by(ctx.last_stage, found, own, needed))


def _made_together(
    found: GroupGradient, dtypes: Sequence[torch.dtype | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of all weights, then of all biases, of these dtypes; None where they are not needed."""
    num_heads = found.heads.num_heads
    wanted = any(needed[:num_heads]), any(needed[num_heads:])
    assert dtypes[0] is not None
    gradients = class_gradients(*found, (dtypes[0], dtypes[num_heads] or dtypes[0]), wanted)
    each: list[Tensor | None] = []
    for gradient, is_wanted in zip(gradients, wanted, strict=True):
        each += gradient.unflatten(0, (num_heads, -1)).unbind() if is_wanted else [None] * num_heads
    return [one if is_needed else None for one, is_needed in zip(each, needed, strict=True)]


def _made_by(
    last_stage: LastStage, found: GroupGradient, parameters: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The same by a last stage, head by head."""
    num_heads = found.heads.num_heads
    made = [
        last_stage.kernel.local_class_gradients(
            *found.of_head(number, parameters[number], parameters[num_heads + number], last_stage.num_labels),
            (needed[number], needed[num_heads + number]),
        )
        for number in range(num_heads)
    ]
    of_weights, of_biases = zip(*made, strict=True)
    return [*of_weights, *of_biases]
