"""Operations on a batch of byte images in C++ (`pixel_pass.cpp`, called by ctypes): one call, one thread an image."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlpheads.kernels import native

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
"""In the order of `Interpolation` in pixel_image.h."""


class NativePixels:
    """Applies to each image of a batch operations of its own.

    Args:
        library: what `rlpheads.kernels.native.load_library` returns.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.rlpheads_pixel_scratch_bytes.restype = ctypes.c_int64

    def __call__(
        self,
        images_B3HW: Tensor,
        kinds_SB: NDArray[np.int32],
        values_SB6: NDArray[np.float32],
        interpolation: str,
    ) -> Tensor:
        """Return new images, in the same memory format; the same bits on any number of threads.

        Args:
            images_B3HW: uint8 on the CPU, contiguous or channels-last.
            kinds_SB: what to do in each of S steps, as `Kind` in pixel_pass.cpp numbers it.
            values_SB6: float32, how strong.
            interpolation: of warps, one of INTERPOLATIONS.

        Raises:
            ValueError: for images or a plan of another shape, type or place.
        """
        num_images, _, height, width = _checked(images_B3HW, kinds_SB, values_SB6).shape
        interleaved = not images_B3HW.is_contiguous()
        if interleaved:
            images_B3HW = images_B3HW.contiguous(memory_format=torch.channels_last)
        out_B3HW = torch.empty_like(images_B3HW)
        num_threads = min(torch.get_num_threads(), max(num_images, 1))
        of_thread = self._library.rlpheads_pixel_scratch_bytes(ctypes.c_int64(height), ctypes.c_int64(width))
        scratch = torch.empty(num_threads * of_thread, dtype=torch.uint8)
        kinds, values = np.ascontiguousarray(kinds_SB), np.ascontiguousarray(values_SB6)
        addresses = (images_B3HW.data_ptr(), out_B3HW.data_ptr(), kinds.ctypes.data, values.ctypes.data)
        numbers = (len(kinds), num_images, height, width, interleaved, INTERPOLATIONS.index(interpolation))
        self._library.rlpheads_pixel_pass(
            *map(ctypes.c_void_p, (*addresses, scratch.data_ptr())), *map(ctypes.c_int64, (*numbers, num_threads))
        )
        return out_B3HW


def load_native_pixels() -> NativePixels | None:
    """Return the operations in C++; None where it cannot be compiled (a warning has said so)."""
    library = native.load_library()
    return None if library is None else NativePixels(library)


def _checked(images: Tensor, kinds: NDArray[np.int32], values: NDArray[np.float32]) -> Tensor:
    if images.dtype != torch.uint8 or images.device.type != "cpu" or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)} on {images.device}, not uint8 (B, 3, H, W) on cpu"
        )
    shapes = (kinds.dtype, values.dtype, kinds.shape[1:], values.shape)
    if shapes != (np.dtype(np.int32), np.dtype(np.float32), (len(images),), (*kinds.shape, 6)):
        raise ValueError(f"the plan is {shapes}, not int32 (S, {len(images)}) and float32 (S, {len(images)}, 6)")
    return images
