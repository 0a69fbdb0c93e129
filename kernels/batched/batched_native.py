"""Heads of few labels in C++ (`batched_pass.cpp`, called by ctypes), for float32: three calls for all heads."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from rlpheads.kernels import native
from rlpheads.kernels.batched.native_arguments import (
    BAD_VALUES,
    HeadPointers,
    OutputPointers,
    raise_if_no_memory,
)
from rlpheads.kernels.batched.written_rows import WrittenHeads, WrittenRows
from rlpheads.kernels.head_rows.row_native import KINDS
from rlpheads.kernels.label_source import check_values_on_host
from rlpheads.kernels.native import plain_floats, pointers, widths

MAX_LABELS_OF_LOOPS = 128
"""Labels up to which the products are loops of this file's own: beyond, the library's products are faster, though each is a
call of its own."""


class NativeBatch:
    """The three calls; every gradient is float32.

    Raises:
        MemoryError: by all, if there is none for their buffers.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def forward(
        self,
        heads: WrittenHeads,
        labels: tuple[Tensor, Tensor | None],
        kind: str | None,
        wanted: tuple[bool, bool],
        logits_RK: Tensor | None = None,
    ) -> WrittenRows:
        """See `written_rows`; `labels`: those of the rows (L, R), and the weight (R,) of the first of two, None for one.

        `logits_RK` are overwritten; without them they are computed, too.
        """
        features, weights = plain_floats(heads.features), plain_floats(heads.weights)
        biases = plain_floats(heads.biases)
        labels_LR = labels[0].contiguous()
        (first_weight_R,) = plain_floats([labels[1]])
        (labels_a_row, num_rows), num_labels = labels_LR.shape, weights[0].shape[0]
        empty = features[0].new_empty
        matrices = [empty(num_rows, num_labels) if is_wanted else None for is_wanted in wanted]
        values = [empty(num_rows) for _ in range(5)]
        rows = WrittenRows._make([*values, empty(num_rows, dtype=torch.bool), *matrices])
        outputs = OutputPointers(
            *[None if each is None else each.data_ptr() for each in rows], native.address(logits_RK)
        )
        batch = HeadPointers(
            pointers(features),
            pointers(weights),
            pointers(biases),
            widths(features),
            *map(native.address, (labels_LR, first_weight_R)),
            *(len(features), features[0].shape[0], num_labels, labels_a_row),
        )
        failure = self._library.rlpheads_batched_forward(
            ctypes.byref(batch), ctypes.byref(outputs), ctypes.c_int64(KINDS.index(kind)), torch.get_num_threads()
        )
        if failure == BAD_VALUES:
            check_values_on_host(*labels, num_labels)
        raise_if_no_memory(failure)
        return rows

    def class_gradients(
        self, features: list[Tensor], gradient_RK: Tensor, upstream_R: Tensor, wanted: Sequence[bool]
    ) -> list[Tensor]:
        """The gradients of `batched_class_gradients` that are wanted; an entry for each weight, then for each bias."""
        features, num_heads, num_labels = plain_floats(features), len(features), gradient_RK.shape[1]
        empty = gradient_RK.new_empty
        of_weights = [
            empty(num_labels, features_BD.shape[1]) if is_wanted else None
            for features_BD, is_wanted in zip(features, wanted[:num_heads], strict=True)
        ]
        of_biases = [empty(num_labels) if is_wanted else None for is_wanted in wanted[num_heads:]]
        upstream_R = upstream_R.contiguous()
        batch = HeadPointers(features=pointers(features), num_features=widths(features))
        batch.num_heads, batch.num_rows, batch.num_labels = num_heads, features[0].shape[0], num_labels
        raise_if_no_memory(
            self._library.rlpheads_batched_class_gradients(
                ctypes.byref(batch),
                ctypes.c_void_p(native.address(gradient_RK)),
                ctypes.c_void_p(native.address(upstream_R)),
                pointers(of_weights),
                pointers(of_biases),
                torch.get_num_threads(),
            )
        )
        return [gradient for gradient in (*of_weights, *of_biases) if gradient is not None]

    def feature_gradients(self, weights: list[Tensor], gradient_RK: Tensor, places: Sequence[int]) -> list[Tensor]:
        """See `batched_feature_gradients`."""
        weights, num_rows = plain_floats(weights), gradient_RK.shape[0] // len(weights)
        gradients: list[Tensor] = []
        for place, weight_KD in zip(places, weights, strict=True):
            if place == len(gradients):
                gradients.append(gradient_RK.new_empty(num_rows, weight_KD.shape[1]))
        gradient_RK = gradient_RK.contiguous()
        batch = HeadPointers(weights=pointers(weights), num_features=widths(weights))
        batch.num_heads, batch.num_rows, batch.num_labels = len(weights), num_rows, gradient_RK.shape[1]
        raise_if_no_memory(
            self._library.rlpheads_batched_feature_gradients(
                ctypes.byref(batch),
                ctypes.c_void_p(native.address(gradient_RK)),
                pointers([gradients[place] for place in places]),
                (ctypes.c_bool * len(places))(*[place in places[:number] for number, place in enumerate(places)]),
                torch.get_num_threads(),
            )
        )
        return gradients


def native_batch(dtype: torch.dtype, device: torch.device) -> NativeBatch | None:
    """The three calls in C++; None where they cannot be had: for sums in float64, off the CPU, without a compiler."""
    if dtype != torch.float32 or device.type != "cpu":
        return None
    library = native.load_library()
    return None if library is None else NativeBatch(library)
