"""Ranges of the classes of heads of few labels in C++ (`batched_ranges.cpp`, called by ctypes), for float32."""

import ctypes
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from rlpheads.kernels import native
from rlpheads.kernels.batched.batched_native import MAX_LABELS_OF_LOOPS
from rlpheads.kernels.batched.native_arguments import (
    BAD_VALUES,
    packed_heads,
    packed_places,
    plain_labels,
    raise_if_no_memory,
)
from rlpheads.kernels.batched.written_rows import WrittenHeads, WrittenRows, batched_logits
from rlpheads.kernels.head_rows.row_native import KINDS
from rlpheads.kernels.label_source import check_values_on_host
from rlpheads.kernels.native import plain_floats


class NativeRanges:
    """The pass over a range of each head's classes, and what follows when those of all ranges are known."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def partials(
        self, heads: WrittenHeads, labels: tuple[Tensor, Tensor | None], start: int, num_labels: int, kind: str | None
    ) -> list[Tensor]:
        """See `rlpheads.kernels.batched.range_rows.range_partials`.

        Raises:
            ValueError: labels outside [0, K), or weights outside [0, 1].
        """
        widths, operands = [each.shape[1] for each in heads.weights], plain_floats(chain(*heads))
        (labels_a_row, num_rows), num_held = labels[0].shape, len(heads.weights[0])
        has_logits = num_held > MAX_LABELS_OF_LOOPS
        empty = partial(heads.features[0].new_empty, dtype=torch.float32)
        exp_RK = batched_logits(heads, torch.float32) if has_logits else empty(num_rows, num_held)
        moment_RK = empty((num_rows, num_held) if kind == "entropy" else (0, 0))
        packed_FR = empty(6 + labels_a_row, num_rows)
        kept, sizes = plain_labels(labels), (len(widths), num_rows // len(widths), num_held)
        failure = self._library.rlpheads_batched_partials(
            packed_heads(sizes, widths, operands, kept),
            ctypes.byref(_range(start, num_labels, kind, exp_RK, moment_RK)),
            ctypes.c_bool(has_logits),
            ctypes.c_void_p(native.address(packed_FR)),
            torch.get_num_threads(),
        )
        if failure == BAD_VALUES:
            check_values_on_host(*kept, num_labels)
        raise_if_no_memory(failure)
        return [packed_FR, exp_RK, moment_RK]

    def merge(
        self,
        gathered_NFR: Tensor,
        packed: list[Tensor],
        labels: tuple[Tensor, Tensor | None],
        num_heads: int,
        start: int,
        num_labels: int,
        kind: str | None,
        wanted: tuple[bool, bool],
    ) -> WrittenRows:
        """See `rlpheads.kernels.batched.range_rows.rows_of_ranges`."""
        packed_FR, exp_RK, moment_RK = packed
        empty, num_rows = exp_RK.new_empty, exp_RK.shape[0]
        matrices = [empty(exp_RK.shape) if is_wanted else None for is_wanted in wanted]
        values = [empty(num_rows) for _ in range(5)]
        rows = WrittenRows._make([*values, empty(num_rows, dtype=torch.bool), *matrices])
        gathered_NFR, kept = gathered_NFR.contiguous(), plain_labels(labels)
        self._library.rlpheads_batched_merge(
            packed_heads(
                (num_heads, num_rows // num_heads, exp_RK.shape[1]), [0] * num_heads, [None] * (3 * num_heads), kept
            ),
            ctypes.byref(_range(start, num_labels, kind, exp_RK, moment_RK)),
            *(ctypes.c_void_p(native.address(each)) for each in (packed_FR, gathered_NFR)),
            ctypes.c_int64(len(gathered_NFR)),
            packed_places([*rows, None]),
            torch.get_num_threads(),
        )
        return rows


def native_ranges(dtype: torch.dtype, device: torch.device) -> NativeRanges | None:
    """The two calls; None where they cannot be had, as for `native_batch`."""
    if dtype != torch.float32 or device.type != "cpu":
        return None
    library = native.load_library()
    return None if library is None else NativeRanges(library)


class _RangePointers(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("start", "num_labels", "kind")),
        *((name, ctypes.c_void_p) for name in ("exps", "moments")),
    )


def _range(start: int, num_labels: int, kind: str | None, exp_RK: Tensor, moment_RK: Tensor) -> _RangePointers:
    moments = moment_RK if kind == "entropy" else None
    return _RangePointers(start, num_labels, KINDS.index(kind), native.address(exp_RK), native.address(moments))
