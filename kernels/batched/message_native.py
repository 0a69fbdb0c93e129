"""The message of the ranks' rows in C++ (`row_message.cpp`, called by ctypes): one call packs it, one takes it apart."""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels import native
from rlpheads.kernels.native import pointers


class MessageLayout(NamedTuple):
    """Where everything lies in a rank's message, in bytes."""

    num_rows: int
    """B of a rank."""
    draws: tuple[int, ...]
    """Rows of each set of labels."""
    offsets: tuple[int, ...]
    """Of each block: features of each width, weights, padding."""
    sizes: tuple[int, ...]
    labels_offset: int
    num_bytes: int


class NativeMessage:
    """Writes and reads messages on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def pack(self, layout: MessageLayout, blocks: Sequence[Tensor | None], labels: Sequence[Tensor]) -> Tensor:
        """Return the message; a block that is None is all True."""
        kept = [None if block is None else block.contiguous() for block in blocks]
        kept_labels = [each.long().contiguous() for each in labels]
        packed_X = torch.empty(layout.num_bytes, dtype=torch.uint8)
        self._library.rlpheads_pack_rows(
            ctypes.byref(_message(layout)),
            pointers(kept),
            pointers(kept_labels),
            ctypes.c_void_p(native.address(packed_X)),
            torch.get_num_threads(),
        )
        return packed_X

    def unpack(
        self,
        layout: MessageLayout,
        gathered_NX: Tensor,
        outputs: tuple[Sequence[Tensor], Tensor],
        copies: tuple[Sequence[int], Sequence[int]],
    ) -> None:
        """Write blocks and labels of all ranks into `outputs`; `copies`: how often each block, and each set of labels."""
        blocks, index = outputs
        of_blocks, of_sets = copies
        gathered_NX = gathered_NX.contiguous()
        self._library.rlpheads_unpack_rows(
            ctypes.byref(_message(layout)),
            ctypes.c_void_p(native.address(gathered_NX)),
            ctypes.c_int64(len(gathered_NX)),
            pointers(blocks),
            _integers(of_blocks),
            _integers(of_sets),
            ctypes.c_void_p(native.address(index)),
            torch.get_num_threads(),
        )


def native_message(device: torch.device) -> NativeMessage | None:
    """The two calls; None off the CPU and without a compiler."""
    library = native.load_library() if device.type == "cpu" else None
    return None if library is None else NativeMessage(library)


class _MessagePointers(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("offsets", "sizes", "draws")),
        *((name, ctypes.c_int64) for name in ("num_blocks", "num_sets", "num_rows", "num_bytes", "labels_offset")),
    )


def _message(layout: MessageLayout) -> _MessagePointers:
    lists = (_integers(layout.offsets), _integers(layout.sizes), _integers(layout.draws))
    counts = (len(layout.offsets), len(layout.draws), layout.num_rows, layout.num_bytes, layout.labels_offset)
    return _MessagePointers(*lists, *counts)


def _integers(values: Sequence[int]) -> "ctypes.Array[ctypes.c_int64]":
    return (ctypes.c_int64 * len(values))(*values)
