"""Heads of few labels in C++ (`batched_pass.cpp`, called by ctypes), for float32: three calls for all heads."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain

import torch
from torch import Tensor

from rlpheads.kernels import native
from rlpheads.kernels.batched.native_arguments import (
    BAD_VALUES,
    packed_heads,
    packed_places,
    plain_labels,
    raise_if_no_memory,
)
from rlpheads.kernels.batched.written_rows import WrittenHeads, WrittenRows
from rlpheads.kernels.head_rows.row_native import KINDS
from rlpheads.kernels.label_source import check_values_on_host
from rlpheads.kernels.native import plain_floats

MAX_LABELS_OF_LOOPS = 128
"""Labels up to which the logits are loops of this file's own: beyond, the library's products are faster, though each is a call
of its own. So it is for gradients from operands in bfloat16; those in float32 are loops at any number of labels."""


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
        products_HKB: Tensor | None = None,
    ) -> WrittenRows:
        """See `written_rows`, but values are (H, B).

        `labels`: those of the rows (L, R), and the weight (R,) of the first of two, None for one. `products_HKB` are
        `transposed_products`; without them the logits are computed, too.
        """
        (num_rows, _), num_labels = heads.features[0].shape, heads.weights[0].shape[0]
        widths, operands = [each.shape[1] for each in heads.weights], plain_floats(chain(*heads))
        num_heads, kept, empty = len(widths), plain_labels(labels), _new_floats(heads.features[0])
        matrices = [empty(num_heads * num_rows, num_labels) if is_wanted else None for is_wanted in wanted]
        values = [empty(num_heads, num_rows) for _ in range(5)]
        rows = WrittenRows._make([*values, empty(num_heads, num_rows, dtype=torch.bool), *matrices])
        failure = self._library.rlpheads_batched_forward(
            packed_heads((num_heads, num_rows, num_labels), widths, operands, kept),
            packed_places([*rows, products_HKB]),
            KINDS.index(kind),
            torch.get_num_threads(),
        )
        if failure == BAD_VALUES:
            check_values_on_host(*labels, num_labels)
        raise_if_no_memory(failure)
        return rows

    def class_gradients(
        self, features: list[Tensor], gradient_RK: Tensor, upstream: Tensor, wanted: Sequence[bool]
    ) -> list[Tensor]:
        """The gradients of `batched_class_gradients` that are wanted; an entry for each weight, then for each bias."""
        features, num_heads, num_labels = plain_floats(features), len(features), gradient_RK.shape[1]
        empty = gradient_RK.new_empty
        of_weights = [
            empty(num_labels, features_BD.shape[1]) if is_wanted else None
            for features_BD, is_wanted in zip(features, wanted[:num_heads], strict=True)
        ]
        of_biases = [empty(num_labels) if is_wanted else None for is_wanted in wanted[num_heads:]]
        upstream = upstream.contiguous()
        raise_if_no_memory(
            self._library.rlpheads_batched_class_gradients(
                packed_heads(
                    (num_heads, features[0].shape[0], num_labels),
                    [each.shape[1] for each in features],
                    [*features, *[None] * (2 * num_heads)],
                ),
                ctypes.c_void_p(native.address(gradient_RK)),
                ctypes.c_void_p(upstream.data_ptr()),
                packed_places([*of_weights, *of_biases]),
                torch.get_num_threads(),
            )
        )
        return [gradient for gradient in (*of_weights, *of_biases) if gradient is not None]

    def feature_gradients(
        self, weights: list[Tensor], gradient_RK: Tensor, upstream: Tensor, places: Sequence[int]
    ) -> list[Tensor]:
        """See `batched_feature_gradients`; those of heads that have the same place are added up."""
        weights, num_heads, num_rows = plain_floats(weights), len(weights), gradient_RK.shape[0] // len(weights)
        gradients: list[Tensor] = []
        for place, weight_KD in zip(places, weights, strict=True):
            if place == len(gradients):
                gradients.append(gradient_RK.new_empty(num_rows, weight_KD.shape[1]))
        gradient_RK, upstream = gradient_RK.contiguous(), upstream.contiguous()
        raise_if_no_memory(
            self._library.rlpheads_batched_feature_gradients(
                packed_heads(
                    (num_heads, num_rows, gradient_RK.shape[1]),
                    [each.shape[1] for each in weights],
                    [*[None] * num_heads, *weights, *[None] * num_heads],
                ),
                ctypes.c_void_p(native.address(gradient_RK)),
                ctypes.c_void_p(upstream.data_ptr()),
                packed_places([gradients[place] for place in places]),
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
    return None if library is None else _batch_of(library)


_batch_of = cache(NativeBatch)


def _new_floats(like: Tensor) -> Callable[..., Tensor]:
    """`like.new_empty` in float32; a dtype that is named costs as much as an output."""
    return like.new_empty if like.dtype == torch.float32 else partial(like.new_empty, dtype=torch.float32)
