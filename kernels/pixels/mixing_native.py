"""Mixup and CutMix of neighbouring rows in C++ (`pair_mixing.cpp`, called by ctypes): in place, one call."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlpheads.kernels import native

ROW_MIX = np.dtype(
    [
        ("weight", np.float32),
        ("padding", np.float32),
        *((name, np.int64) for name in ("top", "left", "height", "width", "covers_around")),
    ]
)
"""`RowMix` of pair_mixing.cpp."""


class NativeMixing:
    """Mixes the rows of every pair.

    Args:
        library: what `rlpheads.kernels.native.load_library` returns.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def __call__(
        self,
        images_B3HW: Tensor,
        weight_B: NDArray[np.floating],
        boxes_B4: NDArray[np.int64],
        around_B: NDArray[np.bool_],
    ) -> bool:
        """Mix in place; False, and nothing is done, for images of another type, place or memory format.

        Args:
            images_B3HW: float32 on the CPU, contiguous or channels-last.
            weight_B: of the row's own sample, where it is not covered.
            boxes_B4: top, left, height, width in pixels; all lie in the image.
            around_B: whether the partner's sample lies around the box instead of in it.
        """
        planar = images_B3HW.is_contiguous()
        interleaved = images_B3HW.is_contiguous(memory_format=torch.channels_last)
        if images_B3HW.dtype != torch.float32 or images_B3HW.device.type != "cpu" or not (planar or interleaved):
            return False
        num_rows, channels, height, width = images_B3HW.shape
        rows = np.zeros(num_rows, dtype=ROW_MIX)
        rows["weight"], rows["covers_around"] = weight_B, around_B
        for name, column in zip(("top", "left", "height", "width"), boxes_B4.T, strict=True):
            rows[name] = column
        planes, inner = (channels, 1) if planar else (1, channels)
        num_threads = min(torch.get_num_threads(), max(num_rows // 2, 1))
        scratch = torch.empty(num_threads * 2 * width * inner)
        addresses = (images_B3HW.data_ptr(), rows.ctypes.data, scratch.data_ptr())
        numbers = (num_rows // 2, planes, height, width, inner, num_threads)
        self._library.rlpheads_mix_pairs(*map(ctypes.c_void_p, addresses), *map(ctypes.c_int64, numbers))
        return True


def load_native_mixing() -> NativeMixing | None:
    """Return the mixing in C++; None where it cannot be compiled (a warning has said so)."""
    library = native.load_library()
    return None if library is None else NativeMixing(library)
