"""Class ranges of several heads on a CUDA GPU, in the same launches: heads whose classes are sharded over ranks.

Each range is reduced to partials, which the ranks exchange; its gradients are made behind the exchange. Both are done for all
heads of a group at once (`head_groups`), as `whole_heads` does it for heads that need no exchange.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.gpu.heads.head_groups import (
    GroupGradient,
    LastStage,
    LinearHeads,
    attach_group_classes,
    group_heads,
)
from rlpheads.kernels.gpu.heads.kept_operands import KeptOperands
from rlpheads.kernels.gpu.triton_loss import HeadsInMemory, Shape, heads_partials, operands_of, planned
from rlpheads.kernels.operators import register_named_operator
from rlpheads.kernels.rows.partials import Exponentials, LogitGradient, Needs, Partials, Products


class HeadRanges(NamedTuple):
    """Heads whose weights hold a range of the classes, and the labels of their rows, one head after another."""

    linear: LinearHeads
    labels_LR: Tensor
    start: int
    """Label of the first class of each range."""

    def of(self, heads: slice) -> "HeadRanges":
        """Some of the heads, one after another."""
        return self._replace(linear=self.linear.of(heads), labels_LR=self.labels_LR[:, self.rows_of(heads)])

    def rows_of(self, heads: slice) -> slice:
        """Where their rows lie among those of all heads."""
        num_rows = self.labels_LR.shape[1] // len(self.linear.weights)
        return slice(heads.start * num_rows, heads.stop * num_rows)


class RangePass(NamedTuple):
    """Heads of a group after the pass over their ranges."""

    heads: slice
    """Which they are among all heads."""
    linear: LinearHeads
    in_memory: HeadsInMemory
    partials: Partials
    products: Products
    exponentials: Exponentials


@torch.no_grad()
def range_passes(ranges: HeadRanges, needs: Sequence[Needs], kept: KeptOperands) -> list[RangePass]:
    """First stage of all heads, `needs` of each; the partials of the groups hold the rows of their heads.

    `kept` holds the weights in the products' dtype from one call to the next.
    """
    linear = ranges.linear

    def most_together(number: int) -> int:
        one = ranges.of(slice(number, number + 1))
        plan, _ = planned(one.linear.in_memory(one.labels_LR, one.start), needs[number])
        return linear.most_together(number, plan)

    passes = []
    for some in group_heads([(linear.kind(number), each) for number, each in enumerate(needs)], most_together):
        of_group = ranges.of(some)
        in_memory = of_group.linear.in_memory(of_group.labels_LR, ranges.start, kept)
        passes.append(RangePass(some, of_group.linear, in_memory, *heads_partials(in_memory, needs[some.start])))
    return passes


class RangeTerms(NamedTuple):
    """What is computed of the merged rows of a group beside cross-entropy and measures."""

    num_labels: int
    """K of a whole head."""
    regularizer: str | None
    for_regularizer: bool
    """Whether a gradient of the features will be asked for: the regulariser's,"""
    for_cross_entropy: bool
    """or that of the cross-entropy."""


class RangeRows(NamedTuple):
    """The rows of a group, which hold all classes, and this range's gradients of them; those that are not wanted are empty."""

    cross_entropy_R: Tensor
    copy_R: Tensor
    """The same, for a second route."""
    regularizer_R: Tensor
    bits_R: Tensor
    margin_R: Tensor
    lse_R: Tensor
    hit_R: Tensor
    scale_CR: Tensor
    """Factor of each slab's exponentials in dL/dz of the cross-entropy."""
    label_LR: Tensor
    """dL/dz of the cross-entropy at the labels."""
    regularizer_RD: Tensor
    """dL/dx of the regulariser, this range's part, (R, D)."""
    cross_entropy_RD: Tensor
    """That of the cross-entropy."""


@torch.no_grad()
def merged_range_rows(
    found: RangePass, parts_NFR: Tensor, first_row: int, first_weight_R: Tensor | None, terms: RangeTerms
) -> RangeRows:
    """Merge what all ranges sent of a group's rows, and make this range's gradients in the features.

    Args:
        found: the pass over this range.
        parts_NFR: the members of `Partials` of the rows of all groups, for each of N ranges in their order.
        first_row: where the group's rows begin.
        first_weight_R: of the group's rows the weight of the first of two labels; None where rows have one.
        terms: what is wanted.
    """
    own = _OwnSums(*found.products[:3], found.exponentials.tile_shift_CB)
    given = _RowsArguments(found.in_memory, own, parts_NFR, first_row, first_weight_R, terms)
    return RangeRows._make(_rows_op(given))


def attach_range_classes(found: RangePass, rows: RangeRows, last_stage: LastStage | None = None) -> Tensor:
    """The cross-entropy of a group's rows as a function of its weights and biases, whose gradients are those of the range.

    `last_stage` takes them head by head; None: they are made together.
    """
    gradient = GroupGradient(found.in_memory, found.exponentials, LogitGradient(rows.scale_CR, rows.label_LR))
    return attach_group_classes(rows.cross_entropy_R, gradient, found.linear, last_stage)


# ---------------------------------------------------------------------------------------------------------- the operator


class _OwnSums(NamedTuple):
    """This range's sums over its classes with their weights, as `Products` has them, and the shifts of its slabs."""

    exp_weight_RD: Tensor
    moment_weight_RD: Tensor
    weight_sum_D: Tensor
    shift_CR: Tensor


class _RowsArguments(NamedTuple):
    heads: HeadsInMemory
    own: _OwnSums
    parts_NFR: Tensor
    first_row: int
    first_weight_R: Tensor | None
    terms: RangeTerms


def _compute_rows(given: _RowsArguments) -> list[Tensor]:
    from rlpheads.kernels.gpu import triton_gradient_launch as launch

    heads, own, wanted = given.heads, given.own, given.terms
    labels_a_row, num_rows = heads.labels_LR.shape
    if num_rows == 0:
        return [shape.zeros(given.parts_NFR) for shape in _rows_shapes(given)]
    operands, rows = operands_of(heads), slice(given.first_row, given.first_row + num_rows)
    statistics = launch.merge_ranges(given.parts_NFR, rows, own.shift_CR, labels_a_row)
    terms = launch.row_terms(
        operands.labels_LR, wanted.num_labels, statistics, given.first_weight_R, wanted.regularizer
    )
    sums = launch.FeatureSums(*own[:3])

    def feature_gradients(factors: tuple[Tensor, Tensor | None, Tensor], *, uniform: bool) -> Tensor:
        return launch.feature_gradients(operands, sums, factors, wanted.num_labels, uniform=uniform)

    nothing_RD = [given.parts_NFR.new_empty(0, heads.features_RD.shape[1]) for _ in range(2)]
    regularizer_RD, cross_entropy_RD = nothing_RD
    if wanted.for_regularizer:
        of_moments_R = terms.moment_R if wanted.regularizer == "entropy" else None
        of_sums = _factors_of_range(terms.exp_R, of_moments_R, own.shift_CR[-1] - statistics[2][-1])
        regularizer_RD = feature_gradients((*of_sums, terms.own_LR), uniform=wanted.regularizer == "uniform")
    if wanted.for_cross_entropy:
        # of the last slab, with whose shift the sums were taken
        cross_entropy_RD = feature_gradients((terms.scale_CR[-2], None, terms.label_LR), uniform=False)
    return [*terms.values, terms.hit_R, terms.scale_CR[:-1], terms.label_LR, regularizer_RD, cross_entropy_RD]


def _factors_of_range(exp_R: Tensor, moment_R: Tensor | None, offset_R: Tensor) -> tuple[Tensor, Tensor | None]:
    """Factors of a range's sums from those of sums under the merged shift, below which the range's own lies: offset ≤ 0."""
    factor_R = offset_R.exp()
    if moment_R is not None:
        exp_R, moment_R = exp_R + offset_R * moment_R, factor_R * moment_R
    # Where the range holds no class but the row's labels, or none, its shift is no logit.
    return torch.where(factor_R == 0, 0, factor_R * exp_R), moment_R


def _shape_of_rows(given: _RowsArguments) -> list[Tensor]:
    return [shape.empty(given.parts_NFR) for shape in _rows_shapes(given)]


def _rows_shapes(given: _RowsArguments) -> list[Shape]:
    (labels_a_row, num_rows), num_features = given.heads.labels_LR.shape, given.heads.features_RD.shape[1]
    return [
        *[Shape((num_rows,))] * 6,
        Shape((num_rows,), torch.bool),
        *(Shape(tuple(given.own.shift_CR.shape)), Shape((labels_a_row, num_rows))),
        *(
            Shape((num_rows if is_wanted else 0, num_features))
            for is_wanted in (given.terms.for_regularizer, given.terms.for_cross_entropy)
        ),
    ]


_rows_op = register_named_operator("triton_range_rows", _compute_rows, _shape_of_rows)
