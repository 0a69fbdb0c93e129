"""The rows of all heads behind the pass over their classes: merged, and read for every value and coefficient in one call.

At a few thousand labels calls are still felt beside arithmetic: so nothing here is done head by head, nor statistic by
statistic. In float32 on a CPU each function is one call of C++ (`row_native`), elsewhere it is what
`rlpheads.kernels.rows.row_softmax` and `terms` have in PyTorch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.head_rows.row_native import native_rows
from rlpheads.kernels.operators import register_operator
from rlpheads.kernels.rows.partials import LogitGradient, unpacked
from rlpheads.kernels.rows.row_softmax import LabelsOfRows, by_head, merge_stacked_partials, row_labels
from rlpheads.kernels.rows.terms import TERMS, Coefficients


class HeadRows(NamedTuple):
    """All heads' rows, one head after another, over all classes: outside every graph."""

    cross_entropy_B: Tensor
    regularizer_B: Tensor
    """Any numbers where there is none."""
    bits_B: Tensor
    margin_B: Tensor
    lse_B: Tensor
    hit_B: Tensor
    shift_B: Tensor
    """What exponentials are relative to that the coefficients multiply."""
    labels: LabelsOfRows
    num_labels: int
    """K."""
    of_cross_entropy: Coefficients
    of_regularizer: Coefficients | None

    def coefficients(self, term: str) -> Coefficients:
        """Those of the cross-entropy, or of the regulariser that the rows were read for."""
        found = self.of_cross_entropy if term == "cross_entropy" else self.of_regularizer
        assert found is not None
        return found


def head_rows(gathered_NFR: Tensor, labels: LabelsOfRows, num_labels: int, kind: str | None) -> HeadRows:
    """Merge what all class ranges packed (`rows.partials.packed_partials`), in the order of their classes.

    The same parts give the same bits at every rank.

    Args:
        gathered_NFR: packed partials of each range.
        labels: the labels of the rows.
        num_labels: K, the classes that a row's softmax goes over.
        kind: of regulariser, or None.
    """
    with torch.no_grad():
        found = _rows_op(gathered_NFR, *labels, num_labels, kind)
    cross_entropy_R, regularizer_R, bits_R, margin_R, lse_R, hit_R, shift_R = found[:7]
    exp_R, label_LR, exp_of_kind_R, label_of_kind_LR, moment_R = found[7:]
    of_regularizer = None
    if kind is not None:
        moment = moment_R if kind == "entropy" else None
        of_regularizer = Coefficients(exp_of_kind_R, label_of_kind_LR, moment, uniform_share(kind, num_labels))
    return HeadRows(
        cross_entropy_B=cross_entropy_R,
        regularizer_B=regularizer_R,
        bits_B=bits_R,
        margin_B=margin_R,
        lse_B=lse_R,
        hit_B=hit_R,
        shift_B=shift_R,
        labels=labels,
        num_labels=num_labels,
        of_cross_entropy=Coefficients(exp_R, label_LR),
        of_regularizer=of_regularizer,
    )


def logit_gradients(
    upstream_R: Tensor, shift_R: Tensor, coefficients: Coefficients, tile_shifts: Sequence[Tensor]
) -> list[LogitGradient]:
    """dL/dz of each head's rows, as the last stage takes it, where the loss has these upstream gradients and coefficients.

    Args:
        upstream_R: of the rows of all heads.
        shift_R: of the merged rows.
        coefficients: of a loss without moments; what it adds at every class is left out.
        tile_shifts: of each head the shift of its rows in each tile of classes.
    """
    found = _logit_gradients_op(upstream_R, shift_R, coefficients.exp_B, coefficients.label_LB, list(tile_shifts))
    return list(map(LogitGradient, found[: len(tile_shifts)], found[len(tile_shifts) :]))


def uniform_share(kind: str, num_labels: int) -> float:
    """`Coefficients.uniform` of a term."""
    return -1 / num_labels if kind == "uniform" else 0.0


def _compute_rows(
    gathered_NFR: Tensor, index_LR: Tensor, first_weight_R: Tensor | None, num_labels: int, kind: str | None
) -> list[Tensor]:
    native = native_rows(gathered_NFR)
    if native is not None:
        return native.head_rows(gathered_NFR, index_LR, first_weight_R, num_labels, kind)
    labels = row_labels(index_LR, first_weight_R, gathered_NFR.dtype)
    rows = merge_stacked_partials(unpacked(gathered_NFR), labels, num_labels)
    cross_entropy_R = TERMS["cross_entropy"].value_B(rows)
    regularizer_R = torch.zeros_like(cross_entropy_R) if kind is None else TERMS[kind].value_B(rows)
    values = [cross_entropy_R, regularizer_R, rows.bits, rows.margin, rows.lse, rows.hit, rows.shift_B]
    own = TERMS["cross_entropy"].coefficients(rows)
    nothing, nothing_LR = cross_entropy_R.new_empty(0), cross_entropy_R.new_empty(0, len(cross_entropy_R))
    of_kind = Coefficients(nothing, nothing_LR) if kind is None else TERMS[kind].coefficients(rows)
    moment_R = nothing if of_kind.moment_B is None else of_kind.moment_B
    # outputs must not be one tensor
    return [*values, *(each.clone() for each in (own.exp_B, own.label_LB, of_kind.exp_B, of_kind.label_LB, moment_R))]


def _shape_of_rows(
    gathered_NFR: Tensor, index_LR: Tensor, _first_weight_R: Tensor | None, _num_labels: int, kind: str | None
) -> list[Tensor]:
    (num_per_row, num_rows), empty = index_LR.shape, gathered_NFR.new_empty
    values = [*(empty(num_rows) for _ in range(5)), empty(num_rows, dtype=torch.bool), empty(num_rows)]
    of_kind = [empty(num_rows if kind else 0), empty(num_per_row if kind else 0, num_rows)]
    moment_R = empty(num_rows if kind == "entropy" else 0)
    return [*values, empty(num_rows), empty(num_per_row, num_rows), *of_kind, moment_R]


def _compute_logit_gradients(
    upstream_R: Tensor, shift_R: Tensor, exp_R: Tensor, label_LR: Tensor, tile_shifts: list[Tensor]
) -> list[Tensor]:
    native = native_rows(shift_R)
    if native is not None:
        found = native.logit_gradients(upstream_R, shift_R, exp_R, label_LR, tile_shifts)
        return [*(each.scale_CB for each in found), *(each.label_LB for each in found)]
    of_heads = [by_head(each, len(tile_shifts)) for each in (upstream_R, shift_R, exp_R, label_LR)]
    scales, labels = [], []
    for tile_shift_CB, upstream_B, shift_B, exp_B, label_LB in zip(tile_shifts, *of_heads, strict=True):
        scales.append(upstream_B * (exp_B * torch.exp(tile_shift_CB - shift_B)))
        labels.append(upstream_B * label_LB)
    return [*scales, *labels]


def _shape_of_logit_gradients(
    _upstream_R: Tensor, _shift_R: Tensor, _exp_R: Tensor, label_LR: Tensor, tile_shifts: list[Tensor]
) -> list[Tensor]:
    num_rows = label_LR.shape[1] // len(tile_shifts)
    labels = [label_LR.new_empty(label_LR.shape[0], num_rows) for _ in tile_shifts]
    return [*(torch.empty_like(each) for each in tile_shifts), *labels]


_rows_op = register_operator(
    "head_rows",
    "Tensor gathered, Tensor labels, Tensor? first_weight, SymInt num_labels, str? kind) -> Tensor[]",
    _compute_rows,
    _shape_of_rows,
)
_logit_gradients_op = register_operator(
    "logit_gradients",
    "Tensor upstream, Tensor shift, Tensor exp, Tensor label_gradient, Tensor[] tile_shifts) -> Tensor[]",
    _compute_logit_gradients,
    _shape_of_logit_gradients,
)
