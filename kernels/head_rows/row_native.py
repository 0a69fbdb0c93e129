"""What follows the pass over the classes in C++ (`head_rows.cpp`, called by ctypes), for float32: one call for all heads."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from rlpheads.kernels import native
from rlpheads.kernels.native import address, plain_floats, pointers, widths
from rlpheads.kernels.rows.partials import LogitGradient
from rlpheads.kernels.rows.terms import REGULARIZERS, Coefficients

KINDS = (None, *REGULARIZERS)
"""The regularisers, in the order of `Kind` in row_terms.h."""


class NativeRows:
    """The four calls; all numbers are float32."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def head_rows(
        self, gathered_NFR: Tensor, index_LR: Tensor, first_weight_R: Tensor | None, num_labels: int, kind: str | None
    ) -> list[Tensor]:
        """See `rlpheads.kernels.head_rows.head_rows.head_rows`; what is not wanted is empty."""
        gathered_NFR, index_LR = gathered_NFR.contiguous(), index_LR.contiguous()
        (first_weight_R,) = plain_floats([first_weight_R])
        (labels_a_row, num_rows), empty = index_LR.shape, gathered_NFR.new_empty
        values = [*(empty(num_rows) for _ in range(5)), empty(num_rows, dtype=torch.bool)]
        shift_R, exp_R, label_LR = empty(num_rows), empty(num_rows), empty(labels_a_row, num_rows)
        of_kind = [empty(num_rows if kind else 0), empty(labels_a_row if kind else 0, num_rows)]
        moment_R = empty(num_rows if kind == "entropy" else 0)
        given = _GatheredPartials(
            *map(address, (gathered_NFR, index_LR, first_weight_R)),
            *(len(gathered_NFR), num_rows, labels_a_row, num_labels, KINDS.index(kind)),
        )
        outputs = _RowOutputs(
            ValuePointers(*map(address, values)),
            address(shift_R),
            _TermOutputs(*map(address, (exp_R, label_LR)), None),
            _TermOutputs(*map(address, (*of_kind, moment_R if kind == "entropy" else None)))
            if kind
            else _TermOutputs(),
        )
        self._library.rlpheads_head_rows(ctypes.byref(given), ctypes.byref(outputs), torch.get_num_threads())
        return [*values, shift_R, exp_R, label_LR, *of_kind, moment_R]

    def logit_gradients(
        self, upstream_R: Tensor, shift_R: Tensor, exp_R: Tensor, label_LR: Tensor, tile_shifts: Sequence[Tensor]
    ) -> list[LogitGradient]:
        """See `rlpheads.kernels.head_rows.head_rows.logit_gradients`."""
        num_heads, (labels_a_row, num_rows) = len(tile_shifts), label_LR.shape
        rows = _RowsOfHeads(num_heads, num_rows // num_heads, labels_a_row)
        shifts = [each.contiguous() for each in tile_shifts]
        scales = [torch.empty_like(each) for each in shifts]
        labels = [label_LR.new_empty(labels_a_row, rows.num_rows) for _ in shifts]
        of_rows = [each.contiguous() for each in (upstream_R, shift_R, exp_R, label_LR)]
        self._library.rlpheads_logit_gradients(
            ctypes.byref(rows),
            *(ctypes.c_void_p(each.data_ptr()) for each in of_rows),
            pointers(shifts),
            (ctypes.c_int64 * num_heads)(*map(len, shifts)),
            pointers(scales),
            pointers(labels),
        )
        return list(map(LogitGradient, scales, labels))

    def feature_gradients(
        self,
        term: Coefficients,
        of_rows: tuple[Tensor, Tensor, Tensor],
        start: int,
        num_heads: int,
        numbers: Sequence[int],
        sums: Sequence[Sequence[Tensor]],
    ) -> list[Tensor]:
        """See `rlpheads.kernels.head_rows.feature_gradients.gradients_in_features`.

        Args:
            term: the coefficients of all heads' rows.
            of_rows: their merged shift, the range's packed partials, their labels.
            start: first label of the range.
            num_heads: H.
            numbers: the heads that are wanted, and of whom all that follows is.
            sums: sums of exponentials with the weight, of moments, of the weight alone; and the weights, in float32.
        """
        exp_weights, moment_weights, weight_sums, weights = sums
        shift_R, packed_FR, index_LR = (each.contiguous() for each in of_rows)
        kept = [None if each is None else each.contiguous() for each in (term.exp_B, term.label_LB, term.moment_B)]
        rows = _RowsOfHeads(num_heads, index_LR.shape[1] // num_heads, len(index_LR))
        gradients = [torch.empty_like(each) for each in exp_weights]
        given = _FeatureTerm(
            *map(address, (*kept, shift_R, packed_FR, index_LR)),
            (ctypes.c_int64 * len(numbers))(*numbers),
            widths(weights),
            *(len(numbers), start, len(weights[0]), term.uniform),
        )
        summed = _FeatureSums(*map(pointers, (exp_weights, moment_weights, weight_sums, weights, gradients)))
        self._library.rlpheads_feature_gradients(
            ctypes.byref(rows), ctypes.byref(given), ctypes.byref(summed), torch.get_num_threads()
        )
        return gradients

    def sum_feature_gradients(self, parts: Sequence[tuple[Tensor, Tensor, int]]) -> list[Tensor]:
        """Return the sums over the parts of each place, by place: of factor (B,) times gradient (B, D)."""
        factors, gradients = [each.contiguous() for each, *_ in parts], [each.contiguous() for _, each, _ in parts]
        sums: dict[int, Tensor] = {}
        adds: list[bool] = []
        for gradient_BD, (*_, place) in zip(gradients, parts, strict=True):
            adds.append(place in sums)
            if place not in sums:
                sums[place] = torch.empty_like(gradient_BD)
        self._library.rlpheads_sum_feature_gradients(
            *map(ctypes.c_int64, (len(parts), len(factors[0]))),
            *(pointers(factors), pointers(gradients), widths(gradients)),
            (ctypes.c_bool * len(adds))(*adds),
            pointers([sums[place] for *_, place in parts]),
            torch.get_num_threads(),
        )
        return [sums[place] for place in range(len(sums))]


def native_rows(numbers: Tensor) -> NativeRows | None:
    """The four calls; None where they cannot be had: for sums that are no float32, off the CPU, without a compiler."""
    if numbers.dtype != torch.float32 or numbers.device.type != "cpu":
        return None
    library = native.load_library()
    return None if library is None else NativeRows(library)


class ValuePointers(ctypes.Structure):
    """`ValueOutputs` of row_outputs.h."""

    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("cross_entropy", "regularizer", "bits", "margin", "lse", "hit")
    )


class _GatheredPartials(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("packed", "labels", "first_weight")),
        *((name, ctypes.c_int64) for name in ("num_ranges", "num_rows", "labels_a_row", "num_labels", "kind")),
    )


class _TermOutputs(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("exp", "labels", "moment"))


class _RowOutputs(ctypes.Structure):
    _fields_ = (
        ("values", ValuePointers),
        ("shift", ctypes.c_void_p),
        *((name, _TermOutputs) for name in ("cross_entropy", "regularizer")),
    )


class _RowsOfHeads(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("num_heads", "num_rows", "labels_a_row"))


class _FeatureTerm(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("exp", "labels", "moment", "shift", "packed", "label_index")),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("numbers", "num_features")),
        *((name, ctypes.c_int64) for name in ("num_wanted", "start", "num_held")),
        ("uniform", ctypes.c_float),
    )


class _FeatureSums(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.POINTER(ctypes.c_void_p))
        for name in ("exp_weights", "moment_weights", "weight_sums", "weights", "gradients")
    )
