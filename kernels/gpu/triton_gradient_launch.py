"""Launchers of the kernels of rows and gradients, for all heads at once, as in `rlpheads.kernels.gpu.triton_launch`."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlpheads.kernels.gpu import triton_gradient_kernels as kernels
from rlpheads.kernels.gpu import triton_row_kernels as row_kernels
from rlpheads.kernels.gpu import triton_terms
from rlpheads.kernels.gpu.checked_launch import Strided, launch_kernel
from rlpheads.kernels.gpu.slab_plan import NUM_STATE
from rlpheads.kernels.gpu.triton_launch import EMULATED, Operands

WRITTEN_ENTRIES = 512
"""Logits of a block of `finish_written_rows`: with 2,048 a thread has up to eight rows, whose terms spill."""
TERMS_TILE = {"ROWS": 128, "num_warps": 4}
SCALE_TILE = {"ROWS": 32, "FEATURES": 128, "num_warps": 4}
FEATURE_TILE = {"ROWS": 16, "FEATURES": 128, "num_warps": 4}
LABEL_TILE = {"LABELS": 16, "FEATURES": 256, "num_warps": 4}
OPERANDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
"""Triton's names of the types of the products' operands."""
SUM_TILE = {"ROWS": 32, "CLASSES": 128, "num_warps": 4}


class RowTerms(NamedTuple):
    """Values (R,) and coefficients of the rows of all heads, which hold all classes."""

    values: tuple[Tensor, ...]
    """Cross-entropy, the same for the joint loss, regularizer, bits, margin, log Σ e^z."""
    hit_R: Tensor
    scale_CR: Tensor
    """Factor of each slab's exponentials in dL/dz of the cross-entropy."""
    label_LR: Tensor
    """dL/dz of the cross-entropy at the labels."""
    exp_R: Tensor
    """Factor of Σ e^z W in the regularizer's dL/dx."""
    moment_R: Tensor
    """Factor of the moments' sum."""
    own_LR: Tensor
    """dL/dz of the regularizer at the labels."""


def merge_ranges(
    parts_NFR: Tensor, rows: slice, own_shift_CR: Tensor, labels_a_row: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge some rows of the partials of N class ranges; return what `row_terms` takes of rows that hold all classes.

    The shifts are those of this rank's own slabs, and behind them that of the merged rows.
    """
    num_ranges, _, rows_apart = parts_NFR.shape
    num_slabs, num_rows = own_shift_CR.shape
    state_SR, label_stats_LR = parts_NFR.new_empty(NUM_STATE, num_rows), parts_NFR.new_empty(labels_a_row, num_rows)
    shift_CR = parts_NFR.new_empty(num_slabs + 1, num_rows)
    shift_CR[:-1] = own_shift_CR
    launch_kernel(
        row_kernels.merge_ranges_kernel,
        (triton.cdiv(num_rows, TERMS_TILE["ROWS"]),),
        *(state_SR, label_stats_LR, shift_CR[-1], parts_NFR),
        *(num_rows, num_ranges, rows_apart, rows.start),
        PAIR=labels_a_row == 2,
        **TERMS_TILE,
    )
    return state_SR, label_stats_LR, shift_CR


def row_terms(
    labels_LR: Tensor,
    num_labels: int,
    statistics: tuple[Tensor, Tensor, Tensor],
    first_weight_R: Tensor | None,
    kind: str | None,
) -> RowTerms:
    """Values and coefficients of rows of K classes from `statistics`: their state, label statistics and slabs' shifts."""
    state_SR, label_stats_FR, shift_CR = statistics
    num_slabs, num_rows = shift_CR.shape
    empty = state_SR.new_empty
    terms = RowTerms(
        tuple(empty(num_rows) for _ in range(6)),
        empty(num_rows, dtype=torch.bool),
        *(empty(num_slabs, num_rows), empty(len(labels_LR), num_rows), empty(num_rows), empty(num_rows)),
        empty(len(labels_LR), num_rows),
    )
    launch_kernel(
        triton_terms.row_terms_kernel,
        (triton.cdiv(num_rows, TERMS_TILE["ROWS"]),),
        *(*terms, state_SR, label_stats_FR, shift_CR, labels_LR, _plain_floats(first_weight_R)),
        *(num_rows, num_slabs, num_labels),
        PAIR=len(labels_LR) == 2,
        KIND=-1 if kind is None else triton_terms.KINDS.index(kind),
        **TERMS_TILE,
    )
    return terms


def finish_written_rows(
    logits_RK: Tensor, labels_LR: Tensor, first_weight_R: Tensor | None, kind: str | None, out: tuple[Any, ...]
) -> None:
    """Fill `out`: six values (R,), hits, and dL/dz (R, K) of cross-entropy and regularizer, None where it is not wanted."""
    num_rows, num_labels = logits_RK.shape
    classes = triton.next_power_of_2(num_labels)
    rows = max(1, min(WRITTEN_ENTRIES // classes, 64))
    launch_kernel(
        triton_terms.written_rows_kernel,
        (triton.cdiv(num_rows, rows),),
        *(*out, logits_RK, labels_LR, _plain_floats(first_weight_R)),
        *(num_rows, num_labels),
        PAIR=len(labels_LR) == 2,
        KIND=-1 if kind is None else triton_terms.KINDS.index(kind),
        FOR_CLASSES=out[2] is not None,
        FOR_FEATURES=out[3] is not None,
        ROWS=rows,
        CLASSES=classes,
        num_warps=4,
    )


class FeatureSums(NamedTuple):
    """Sums over each head's classes with their weights, float32; members that are not wanted are empty."""

    exp_weight_RD: Tensor
    moment_weight_RD: Tensor
    weight_sum_HD: Tensor


def feature_gradients(
    operands: Operands,
    sums: FeatureSums,
    factors: tuple[Tensor, Tensor | None, Tensor],
    num_labels: int,
    *,
    uniform: bool,
) -> Tensor:
    """What the operands' classes, of K, add to dL/dx (R, D) of every head's rows under an upstream of 1, in float32.

    `factors` are those of the exponentials' sum (R,), of the moments' (R,) or None, and dL/dz at the labels (L, R); with
    `uniform` dL/dz of every class is 1/K less.
    """
    num_rows, num_features = operands.num_rows, operands.features_RD.shape[1]
    gradient_RD = torch.empty_like(sums.exp_weight_RD)
    grid = (
        triton.cdiv(num_rows, FEATURE_TILE["ROWS"]),
        _feature_blocks(FEATURE_TILE, num_features),
        operands.num_heads,
    )
    launch_kernel(
        kernels.feature_gradients_kernel,
        grid,
        *(gradient_RD, *sums, Strided(operands.weight_KD), operands.labels_LR, *factors),
        *(num_rows, operands.num_classes, num_labels, num_features, operands.start, operands.weight_KD.stride(0)),
        PAIR=len(operands.labels_LR) == 2,
        MOMENT=factors[1] is not None,
        UNIFORM=uniform,
        OPERAND=OPERANDS[operands.features_RD.dtype],
        EMULATED=EMULATED,
        **FEATURE_TILE,
    )
    return gradient_RD


def weigh_features(out_RD: Tensor, gradient_RD: Tensor, upstream_R: Tensor, num_heads: int) -> None:
    """Write the features' gradient: upstream · dL/dx, summed over the heads that read the same features, if they do.

    `out_RD` holds the rows of all heads, or those of one, which all heads read.
    """
    num_rows, num_features = len(gradient_RD) // num_heads, gradient_RD.shape[1]
    readers = len(out_RD) // num_rows
    grid = (triton.cdiv(num_rows, FEATURE_TILE["ROWS"]), _feature_blocks(FEATURE_TILE, num_features), readers)
    launch_kernel(
        kernels.weigh_features_kernel,
        grid,
        *(out_RD, gradient_RD, upstream_R, num_rows, num_heads // readers, num_features),
        EMULATED=EMULATED,
        **FEATURE_TILE,
    )


class GradientRows(NamedTuple):
    """A slab's part of dL/dz of the cross-entropy, for every head's rows."""

    exp_RK: Tensor
    scale_R: Tensor
    """Factor of the exponentials."""
    base_R: Tensor
    """Added to them before; empty where it is 0."""
    label_LR: Tensor
    """dL/dz at the labels."""

    def num_kept_rows(self, operands: Operands) -> int:
        """Rows of one head in the buffer of exponentials."""
        return len(self.exp_RK) // operands.num_heads


def scale_features(operands: Operands, rows: GradientRows, factor_H: Tensor | None) -> Tensor:
    """v∘x of every head in the exponentials' dtype, divided by the head's factor, beside their buffer's rows."""
    num_rows, num_features = operands.num_rows, operands.features_RD.shape[1]
    scaled_RD = rows.exp_RK.new_empty(len(rows.exp_RK), num_features)
    has_base = len(rows.base_R) > 0
    row_blocks = 1 if has_base else triton.cdiv(num_rows, SCALE_TILE["ROWS"])
    launch_kernel(
        kernels.scale_features_kernel,
        (_feature_blocks(SCALE_TILE, num_features), row_blocks, operands.num_heads),
        *(scaled_RD, Strided(operands.features_RD), rows.scale_R, factor_H, rows.base_R),
        *(num_rows, rows.num_kept_rows(operands), num_features, operands.rows_apart, operands.features_RD.stride(0)),
        HAS_FACTOR=factor_H is not None,
        HAS_BASE=has_base,
        OPERAND=OPERANDS[scaled_RD.dtype],
        EMULATED=EMULATED,
        **SCALE_TILE,
    )
    return scaled_RD


class SortedLabels(NamedTuple):
    """Each head's labels in ascending order, equal ones in the order of their rows: (H, L·B)."""

    labels_HN: Tensor
    order_HN: Tensor
    """Which of the head's labels each was."""

    @classmethod
    def of(cls, operands: Operands) -> "SortedLabels":
        """Sort the labels of every head."""
        labels_LHB = operands.labels_LR.unflatten(1, (operands.num_heads, -1))
        labels_HN = labels_LHB.transpose(0, 1).flatten(1).contiguous()  # of one row a head `flatten` makes no copy
        return cls(*labels_HN.sort(dim=1, stable=True))


def add_label_rows(
    gradient_KD: Tensor, sums_ND: Tensor | None, operands: Operands, ordered: SortedLabels, label_LR: Tensor
) -> None:
    """Add the labels' terms to the weights' gradient; `sums_ND` are the unrounded rows of the sorted labels of a narrow one."""
    num_features, num_places = operands.features_RD.shape[1], ordered.labels_HN.shape[1]
    grid = (num_places, _feature_blocks(LABEL_TILE, num_features), operands.num_heads)
    launch_kernel(
        kernels.add_label_rows_kernel,
        grid,
        *(Strided(gradient_KD), Strided(gradient_KD) if sums_ND is None else sums_ND),
        *(Strided(operands.features_RD), *ordered, label_LR),
        *(operands.num_rows, num_places, operands.num_classes, num_features, operands.start, operands.rows_apart),
        *(gradient_KD.stride(0), operands.features_RD.stride(0)),
        SUMS_GIVEN=sums_ND is not None,
        EMULATED=EMULATED,
        **LABEL_TILE,
    )


def class_sums(gradient_K: Tensor, operands: Operands, rows: GradientRows) -> None:
    """Write a slab's part of the gradient of the biases."""
    num_classes = operands.num_classes
    launch_kernel(
        kernels.class_sums_kernel,
        (triton.cdiv(num_classes, SUM_TILE["CLASSES"]), operands.num_heads),
        *(gradient_K, Strided(rows.exp_RK), rows.base_R, rows.scale_R, operands.labels_LR, rows.label_LR),
        *(operands.num_rows, rows.num_kept_rows(operands), operands.labels_LR.numel() // operands.num_heads),
        *(num_classes, operands.start, rows.exp_RK.stride(0)),
        HAS_BASE=len(rows.base_R) > 0,
        EMULATED=EMULATED,
        **SUM_TILE,
    )


def _plain_floats(weight_R: Tensor | None) -> Tensor | None:
    """Weights as the kernels take them: float32, side by side, though the caller may have expanded one number."""
    return None if weight_R is None else weight_R.float().contiguous()


def _feature_blocks(tile: dict[str, int], num_features: int) -> int:
    return triton.cdiv(num_features, tile["FEATURES"])
