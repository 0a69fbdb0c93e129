"""The loss in three stages over class ranges: local partials → merge → local gradients.

Heads that are held whole run the three in a row. Heads whose classes are sharded run the first on each range
(`pass_over_heads`), pass what all ranges packed, in class order, to `rlpheads.kernels.head_rows.head_rows.head_rows`, and run
the last on each range again: `feature_gradients_of_heads`, to be summed over the ranges before it is attached, and
`attach_class_gradients`, whose result is the range's own. The two `attach_*` functions route the gradients: a loss reaches
either the head or the features, never both. A kernel computes one head at a time; tiles on a CPU have a call for all.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.cpu import tiled_cpu, tiled_heads
from rlpheads.kernels.first_derivative import refuse_second_derivative, save_with_anchor
from rlpheads.kernels.gpu import triton_loss
from rlpheads.kernels.gpu.heads.kept_operands import KeptOperands
from rlpheads.kernels.gpu.heads.kept_stages import KeptStages
from rlpheads.kernels.head_rows.feature_gradients import (
    Summed,
    gradients_in_features,
    local_feature_gradient,
    sum_feature_gradients,
)
from rlpheads.kernels.head_rows.head_rows import HeadRows, logit_gradients
from rlpheads.kernels.rows import reference_stages
from rlpheads.kernels.rows.kernel import Kernel
from rlpheads.kernels.rows.partials import ClassRange, Exponentials, Needs, Products, packed_partials, unpacked
from rlpheads.kernels.rows.row_softmax import RowSoftmax, by_head
from rlpheads.kernels.rows.terms import Coefficients

KERNELS: dict[str, Kernel] = {"reference": reference_stages, "tiled_cpu": tiled_cpu, "triton": triton_loss}
"""The implementations of the local stages by their name."""

_TILES: Kernel = tiled_cpu
"""The one whose stages take all heads in a call (`tiled_heads`)."""


def kernel_that_keeps(name: str, kept: KeptOperands | None) -> Kernel:
    """Return the implementation of a name, with weights in the products' dtype that are kept from pass to pass, if given."""
    return KeptStages(kept) if name == "triton" and kept is not None else KERNELS[name]


class LocalHead(NamedTuple):
    """Features, class range and kept exponentials of one head: what its class gradients are computed from."""

    features_BD: Tensor
    """Outside every graph."""
    head: ClassRange
    exponentials: Exponentials


class HeadPass(NamedTuple):
    """One head after the pass over its range of classes."""

    local: LocalHead
    products: Products


class HeadPasses(NamedTuple):
    """All heads after the pass over their ranges, which are of the same classes."""

    packed_FR: Tensor
    """`rows.partials.packed_partials` of all their rows, one head after another: what the ranges exchange."""
    heads: list[HeadPass]


def pass_over_heads(
    kernel: Kernel,
    features: Sequence[Tensor],
    ranges: Sequence[ClassRange],
    labels_LR: Tensor,
    needs: Sequence[Needs],
) -> HeadPasses:
    """The first stage of all heads, on features outside every graph; in tiles on a CPU it is one call."""
    with torch.no_grad():  # not a detached weight: its copies are kept for itself
        if kernel is _TILES:
            packed_FR, found = tiled_heads.partials_of_heads(features, ranges, labels_LR, needs)
        else:
            passes = list(map(kernel.local_partials, features, ranges, by_head(labels_LR, len(ranges)), needs))
            packed_FR, found = packed_partials([partials for partials, *_ in passes]), [each[1:] for each in passes]
    local_heads = map(LocalHead, features, ranges, (kept for _, kept in found))
    return HeadPasses(packed_FR, list(map(HeadPass, local_heads, (products for products, _ in found))))


def feature_gradients_of_heads(
    kernel: Kernel, passes: HeadPasses, rows: HeadRows, term: str, numbers: Sequence[int]
) -> list[Tensor]:
    """Of each head of these numbers the range's part of dL/dx of a term, (B, D): the cross-entropy or the regulariser."""
    num_heads, wanted = len(passes.heads), [(number, *passes.heads[number]) for number in numbers]
    if kernel is _TILES:
        of_ranges = [(number, local.head, products) for number, local, products in wanted]
        return gradients_in_features(rows, passes.packed_FR, term, of_ranges, num_heads)
    labels, shifts, partials = (
        by_head(each, num_heads) for each in (rows.labels.index_LB, rows.shift_B, passes.packed_FR)
    )
    factors = rows.coefficients(term).by_head(num_heads)
    return [
        local_feature_gradient(
            local.head.detach(), labels[number], shifts[number], factors[number], unpacked(partials[number]), products
        )
        for number, local, products in wanted
    ]


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
    value_B: Tensor, heads: Sequence[LocalHead], rows: RowSoftmax | HeadRows, coefficients: Coefficients, kernel: Kernel
) -> Tensor:
    """`value_B` as a function of the heads' weights and biases alone; `kernel` computes their gradients in backward.

    The rows are those of all heads, one head after another.
    """
    plan = _ClassPlan([(local.head.start, local.head.num_labels) for local in heads], kernel)
    of_heads = [
        _SavedHead(local.head.weight_KD, local.head.bias_K, local.features_BD, *local.exponentials) for local in heads
    ]
    of_rows = _SavedRows(coefficients.exp_B, coefficients.label_LB, rows.shift_B, rows.labels.index_LB)
    attached_B, _ = _ClassRoute.apply(value_B, plan, *of_rows, *chain.from_iterable(of_heads))
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
        parts = [Summed(0, number, (place,)) for number, place in enumerate(ctx.read_by_head)]
        sums = sum_feature_gradients([upstream_B], saved, parts, len(parts))
        of_features = [sum_BD.to(dtype) for sum_BD, dtype in zip(sums, ctx.dtypes, strict=True)]
        return (None, None, *of_features, *[None] * len(parts))


class _ClassPlan(NamedTuple):
    ranges: list[tuple[int, int]]
    """First label and number of labels of the whole head, of each."""
    kernel: Kernel


class _SavedRows(NamedTuple):
    """What the class gradients of all heads need of the rows."""

    exp_R: Tensor
    """Coefficients of the loss."""
    label_LR: Tensor
    shift_R: Tensor
    index_LR: Tensor


class _SavedHead(NamedTuple):
    """What the class gradients of one head need; a route's inputs are those of all heads, as autograd takes tensors alone."""

    weight_KD: Tensor
    bias_K: Tensor | None
    features_BD: Tensor
    flat: Tensor
    tile_shift_CB: Tensor
    tile_base_CB: Tensor | None

    @property
    def exponentials(self) -> Exponentials:
        """As far as they were kept."""
        return Exponentials(self.flat, self.tile_shift_CB, self.tile_base_CB)


class _ClassRoute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value_B: Tensor, plan: _ClassPlan, *saved: Tensor | None) -> tuple[Tensor, ...]:
        ctx.plan = plan
        return save_with_anchor(ctx, (value_B.clone(),), *saved)

    @staticmethod
    @refuse_second_derivative
    def backward(ctx: Any, saved: Sequence[Tensor], upstream_B: Tensor) -> tuple[Tensor | None, ...]:
        first, size, needed = len(_SavedRows._fields), len(_SavedHead._fields), ctx.needs_input_grad[2:]
        rows, starts = _SavedRows(*saved[:first]), range(first, len(saved), size)
        heads = [_SavedHead(*saved[start : start + size]) for start in starts]
        wanted = [needed[start : start + 2] for start in starts]  # weight and bias
        gradients: list[Tensor | None] = []
        for of_head in _class_gradients(ctx.plan, rows, heads, upstream_B, wanted):
            gradients += [*of_head, *[None] * (size - 2)]
        return (None, None, *[None] * first, *gradients)


def _class_gradients(
    plan: _ClassPlan,
    rows: _SavedRows,
    heads: Sequence[_SavedHead],
    upstream_R: Tensor,
    wanted: Sequence[tuple[bool, bool]],
) -> Sequence[tuple[Tensor | None, Tensor | None]]:
    """The last stage of all heads: gradients of weight and bias of each. In tiles on a CPU it is one call."""
    of_loss, tile_shifts = Coefficients(rows.exp_R, rows.label_LR), [head.tile_shift_CB for head in heads]
    of_logits = logit_gradients(upstream_R, rows.shift_R, of_loss, tile_shifts)
    ranges = [
        ClassRange(head.weight_KD, head.bias_K, *of_head) for head, of_head in zip(heads, plan.ranges, strict=True)
    ]
    features, kept = [head.features_BD for head in heads], [head.exponentials for head in heads]
    if plan.kernel is _TILES:
        return tiled_heads.class_gradients_of_heads(features, ranges, rows.index_LR, kept, of_logits, wanted)
    labels = by_head(rows.index_LR, len(heads))
    return list(map(plan.kernel.local_class_gradients, features, ranges, labels, kept, of_logits, wanted))
