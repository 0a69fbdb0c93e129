"""What is done to the bytes of each image of a batch, as the host plans it, and PyTorch's way of doing it.

Draws are keyed by (seed, epoch, index), so the host knows each image's operations before the batch reaches the device: a
batch's rows are sorted by operation, and each row passes its own and no other. Nothing is read from the device.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlpheads.loaders.augment import pixel_operations as pixels
from rlpheads.loaders.augment.spec import Interpolation
from rlpheads.loaders.contract.arrays import Int64Array

NUM_VALUES = 6
"""Numbers that an operation takes at most."""


class PixelKind(IntEnum):
    """Operations on bytes. In their names, what their numbers are."""

    UNCHANGED = 0
    WARP = 1  # the map, row by row (see pixel_operations.warp)
    BRIGHTNESS = 2  # ratio, 1 − ratio
    COLOR = 3  # ratio, 1 − ratio
    CONTRAST = 4  # ratio, 1 − ratio
    SHARPNESS = 5  # ratio, 1 − ratio
    POSTERIZE = 6  # bits
    SOLARIZE = 7  # threshold
    SOLARIZE_ADD = 8  # what is added
    AUTOCONTRAST = 9
    EQUALIZE = 10
    BLUR = 11  # standard deviation in pixels
    HUE = 12  # turns


class PixelStep(NamedTuple):
    """One operation for each image.

    Attributes:
        kind_B: int32, a PixelKind.
        values_B6: float32, the operation's numbers; the rest is not read.
    """

    kind_B: NDArray[np.int32]
    values_B6: NDArray[np.float32]

    @classmethod
    def of(cls, kinds: PixelKind | NDArray[np.int32], values_B: NDArray[np.floating]) -> PixelStep:
        """Return the step of one kind, or of each image's own, that takes one number for each image, or a ratio."""
        values_B6 = np.zeros((len(values_B), NUM_VALUES), dtype=np.float32)
        values_B6[:, 0] = values_B
        values_B6[:, 1] = 1 - values_B
        return cls(np.broadcast_to(np.asarray(kinds, dtype=np.int32), len(values_B)), values_B6)


class PixelPlanner(Protocol):
    """Something that decides what is done to the bytes of images: a policy, colour jitter, a padded crop."""

    def plan(self, index_B: Int64Array, epoch: int, size: tuple[int, int]) -> list[PixelStep]:
        """Return what is done to the images of (H, W) pixels with these canonical indices, step after step."""
        ...


PixelRunner = Callable[[Tensor, NDArray[np.int32], NDArray[np.float32], str], Tensor]
"""Another way of doing a plan, in new memory: of images, kinds (S, B), their numbers (S, B, 6), and warps' interpolation."""


def run_sorted(
    images_B3HW: Tensor, kinds_SB: NDArray[np.int32], values_SB6: NDArray[np.float32], interpolation: Interpolation
) -> Tensor:
    """Apply a plan by PyTorch's operations: the rows of one kind together, each kind that occurs once a step.

    Args:
        images_B3HW: uint8, on any device.
        kinds_SB: int32, the PixelKinds of S steps.
        values_SB6: float32, their numbers.
        interpolation: of warps.

    Returns:
        New images: uint8 (B, 3, H, W), contiguous.
    """
    order_SB = np.argsort(kinds_SB, axis=1, kind="stable")
    sorted_SB6 = np.take_along_axis(values_SB6, order_SB[..., None], axis=1)
    rows_SB, values = (upload(array, images_B3HW.device) for array in (order_SB, sorted_SB6))
    images = images_B3HW.clone(memory_format=torch.contiguous_format)
    for step, kinds_B in enumerate(kinds_SB):
        ends = np.cumsum(np.bincount(kinds_B, minlength=len(PixelKind)))
        for kind in tuple(PixelKind)[1:]:
            part = slice(int(ends[kind - 1]), int(ends[kind]))
            if part.start < part.stop:
                rows = rows_SB[step, part]
                changed = apply_kind(kind, images.index_select(0, rows), values[step, part], interpolation)
                images.index_copy_(0, rows, changed)
    return images


def apply_kind(kind: PixelKind, images: Tensor, values_B6: Tensor, interpolation: Interpolation) -> Tensor:
    """Do one kind of operation to all images."""
    value_B, rest_B = values_B6[:, :2].unbind(1)
    match kind:
        case PixelKind.WARP:
            return pixels.warp(images, values_B6.view(-1, 2, 3), interpolation)
        case PixelKind.BRIGHTNESS:
            return pixels.blend(images, value_B.new_zeros(()), value_B, rest_B)
        case PixelKind.COLOR:
            return pixels.blend(images, pixels.grey(images), value_B, rest_B)
        case PixelKind.CONTRAST:
            return pixels.blend(images, pixels.mean_of(pixels.grey(images)), value_B, rest_B)
        case PixelKind.SHARPNESS:
            return pixels.sharpen(images, rest_B)
    one_number = {
        PixelKind.POSTERIZE: pixels.posterize,
        PixelKind.SOLARIZE: pixels.solarize,
        PixelKind.SOLARIZE_ADD: pixels.solarize_add,
        PixelKind.BLUR: pixels.gaussian_blur,
        PixelKind.HUE: pixels.rotate_hue,
    }
    if kind in one_number:
        return one_number[kind](images, value_B)
    return pixels.autocontrast(images) if kind == PixelKind.AUTOCONTRAST else pixels.equalize(images)


def upload(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Return an array on a device; nothing waits for its copy."""
    tensor = torch.tensor(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
