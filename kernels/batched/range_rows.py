"""Heads of few labels whose classes are split into ranges, one a rank: all heads in one call before the exchange, one behind.

`range_partials` writes out the logits of a range and reduces them to what the ranks exchange; `rows_of_ranges` merges
what they sent, and writes each row's values and its dL/dz in the range's own classes: from there on a range is a head.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.batched.batched_loss import BatchedLabels
from rlpheads.kernels.batched.range_native import native_ranges
from rlpheads.kernels.batched.stacked_heads import stacked_logits, uses_stacks
from rlpheads.kernels.batched.written_rows import (
    WrittenHeads,
    WrittenRows,
    batched_logits,
    merged_rows,
    sums_over_range,
)
from rlpheads.kernels.label_source import check_values_on_host
from rlpheads.kernels.operators import register_operator
from rlpheads.kernels.rows.partials import accumulation_dtype, unpacked
from rlpheads.kernels.rows.row_softmax import merge_stacked_partials, row_labels


class HeldRange(NamedTuple):
    """Which classes of every head are held, and what is computed with them."""

    start: int
    """First label of the range."""
    num_labels: int
    """K of the whole head."""
    regularizer: str | None
    plain: bool
    """In PyTorch, even where there is C++."""


class RangeSums(NamedTuple):
    """All heads' rows after the pass over the range."""

    packed_FR: Tensor
    """The members of `Partials` behind one another: what the ranks exchange."""
    exp_RK: Tensor
    moment_RK: Tensor
    """Empty but for `entropy`."""


def range_partials(heads: WrittenHeads, labels: BatchedLabels, held: HeldRange) -> RangeSums:
    """Reduce a range of every head's classes, which may be empty; `heads` hold the range alone.

    Raises:
        ValueError: labels outside [0, K), or weights outside [0, 1] (on the CPU).
    """
    with torch.no_grad():
        return RangeSums._make(_partials_op(*heads, *labels, *held))


def rows_of_ranges(
    gathered_NFR: Tensor,
    sums: RangeSums,
    labels: BatchedLabels,
    num_heads: int,
    held: HeldRange,
    wanted: tuple[bool, bool],
) -> WrittenRows:
    """Values of all heads' rows from what all ranges packed, in their order; gradients in the logits are the range's own.

    The same parts give the same bits at every rank. `wanted`: gradients of the cross-entropy, and of the regulariser.
    """
    with torch.no_grad():
        found = WrittenRows._make(_rows_op(gathered_NFR, *sums, *labels, num_heads, *held, *wanted))
    return found._replace(
        class_gradient_RK=found.class_gradient_RK if wanted[0] else None,
        feature_gradient_RK=found.feature_gradient_RK if wanted[1] else None,
    )


def _compute_partials(
    features: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor | None],
    index_LR: Tensor,
    first_weight_R: Tensor | None,
    *of_range: Any,
) -> list[Tensor]:
    heads, held = WrittenHeads(features, weights, biases), HeldRange._make(of_range)
    dtype, device = accumulation_dtype(features[0], weights[0]), index_LR.device
    with torch.autocast(device.type, enabled=False):
        native = None if held.plain else native_ranges(dtype, device)
        if native is not None:
            return native.partials(heads, (index_LR, first_weight_R), held.start, held.num_labels, held.regularizer)
        if device.type == "cpu":
            check_values_on_host(index_LR, first_weight_R, held.num_labels)
        logits_RK = (stacked_logits if uses_stacks(device) else batched_logits)(heads, dtype)
        sums, _ = sums_over_range(logits_RK, index_LR, held.start)
        packed_FR = torch.cat([torch.atleast_2d(numbers) for numbers in sums.partials])
        moment_RK = sums.moment_BC[:, 1:] if held.regularizer == "entropy" else logits_RK.new_empty(0, 0)
        return [packed_FR, sums.exp_BC[:, 1:].contiguous(), moment_RK.contiguous()]


def _compute_rows(
    gathered_NFR: Tensor,
    packed_FR: Tensor,
    exp_RK: Tensor,
    moment_RK: Tensor,
    index_LR: Tensor,
    first_weight_R: Tensor | None,
    num_heads: int,
    *of_range_and_wanted: Any,
) -> list[Tensor]:
    held = HeldRange._make(of_range_and_wanted[:4])
    for_classes, for_features = map(bool, of_range_and_wanted[4:])
    wanted = for_classes, for_features and held.regularizer is not None
    native = None if held.plain else native_ranges(packed_FR.dtype, packed_FR.device)
    if native is not None:
        of_range = (num_heads, held.start, held.num_labels, held.regularizer)
        rows = native.merge(gathered_NFR, [packed_FR, exp_RK, moment_RK], (index_LR, first_weight_R), *of_range, wanted)
    else:
        merged = merge_stacked_partials(
            unpacked(gathered_NFR), row_labels(index_LR, first_weight_R, packed_FR.dtype), held.num_labels
        )
        own, moments = unpacked(packed_FR), moment_RK if moment_RK.numel() else exp_RK  # any numbers but for `entropy`
        rows = merged_rows(merged, exp_RK, moments, own, held.start, held.regularizer, wanted)
    nothing = rows.lse_R.new_empty(0)
    return [nothing if each is None else each for each in rows]


def _shape_of_partials(*arguments: Any) -> list[Tensor]:
    features, weights, _, index_LR, _, _, _, kind, _ = arguments
    num_rows, num_held, empty = index_LR.shape[1], weights[0].shape[0], features[0].new_empty
    dtype = accumulation_dtype(features[0], weights[0])
    shapes = [
        (6 + index_LR.shape[0], num_rows),
        (num_rows, num_held),
        (num_rows, num_held) if kind == "entropy" else (0, 0),
    ]
    return [empty(shape, dtype=dtype) for shape in shapes]


def _shape_of_rows(*arguments: Any) -> list[Tensor]:
    _, packed_FR, exp_RK, *_, kind, _, for_classes, for_features = arguments
    empty, num_rows = packed_FR.new_empty, packed_FR.shape[1]
    wanted = (for_classes, for_features and kind is not None)
    matrices = [empty(exp_RK.shape) if is_wanted else empty(0) for is_wanted in wanted]
    return [*(empty(num_rows) for _ in range(5)), empty(num_rows, dtype=torch.bool), *matrices]


_HELD = "SymInt start, int num_labels, str? kind, bool plain"
_partials_op = register_operator(
    "range_partials",
    f"Tensor[] features, Tensor[] weights, Tensor?[] biases, Tensor labels, Tensor? first_weight, {_HELD}) -> Tensor[]",
    _compute_partials,
    _shape_of_partials,
)
_rows_op = register_operator(
    "rows_of_ranges",
    "Tensor gathered, Tensor packed, Tensor exps, Tensor moments, Tensor labels, Tensor? first_weight, int num_heads, "
    f"{_HELD}, bool for_classes, bool for_features) -> Tensor[]",
    _compute_rows,
    _shape_of_rows,
)
