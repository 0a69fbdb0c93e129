"""Crop, resize and flip of decoded images, with torchvision's antialiased resize on uint8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from rlpheads.loaders.contract.arrays import FloatArray, Int64Array
from rlpheads.loaders.contract.crops import CropSpec, Interpolation, draw_crops, no_draws, place_crops

_THIN = 16
"""An image whose long side is more than this many short sides is thin: resizing all of it takes memory for nothing."""


class ImageTransform(Protocol):
    """Makes images of any sizes equally large; `draw`, `place` and `make` are a pure function of image, epoch and index."""

    @property
    def image_size(self) -> int:
        """Side of the squares, in pixels."""
        ...

    def at(self, epoch: int) -> ImageTransform:
        """Return the transform of an epoch, whose size may be its own."""
        ...

    def draw(self, epoch: int, index_B: Int64Array) -> FloatArray:
        """Draw all random numbers that samples need, before their images are opened: float64 (U, B)."""
        ...

    def place(self, draws_UB: FloatArray, sizes_B2: Int64Array) -> Sequence[Any]:
        """Return for each image what `make` needs, from its random numbers and its (height, width) in pixels."""
        ...

    def make(self, image: Tensor, cut: Any) -> Tensor:
        """Turn an image, uint8 (3, H, W), into uint8 (3, image_size, image_size)."""
        ...


class Cut(NamedTuple):
    """A box of (top, left, height, width) in pixels, and whether it is flipped."""

    box: tuple[int, int, int, int]
    flipped: bool


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop and horizontal flip, keyed by (seed, epoch, index).

    Attributes:
        crop: Ranges of the draws.
        seed: Key of the run.
    """

    crop: CropSpec
    seed: int

    @property
    def image_size(self) -> int:
        """Side of the squares, in pixels."""
        return self.crop.image_size

    def at(self, epoch: int) -> TrainTransform:
        """Return the transform with the size of an epoch."""
        return TrainTransform(self.crop.at(epoch), self.seed)

    def draw(self, epoch: int, index_B: Int64Array) -> FloatArray:
        """Draw the random numbers of crops and flips."""
        return draw_crops(self.crop, self.seed, epoch, index_B)

    def place(self, draws_UB: FloatArray, sizes_B2: Int64Array) -> list[Cut]:
        """Return the crop and the flip of each image."""
        boxes_B4, flip_B = place_crops(self.crop, draws_UB, sizes_B2)
        return [Cut(*cut) for cut in zip(boxes_B4.tolist(), flip_B.tolist(), strict=True)]

    def make(self, image: Tensor, cut: Cut) -> Tensor:
        """Cut, resize and perhaps flip an image."""
        square = resized_crop(image, cut.box, self.image_size, self.crop.interpolation)
        return square.flip(-1) if cut.flipped else square


@dataclass(frozen=True)
class EvalTransform:
    """Resize of the short side and central crop; the same pixels in every epoch.

    Attributes:
        crop: Size and margin.
    """

    crop: CropSpec

    @property
    def image_size(self) -> int:
        """Side of the squares, in pixels."""
        return self.crop.image_size

    def at(self, epoch: int) -> EvalTransform:  # noqa: ARG002
        """Return the transform itself: every epoch has the same size."""
        return self

    def draw(self, epoch: int, index_B: Int64Array) -> FloatArray:  # noqa: ARG002
        """Return no numbers: nothing is random."""
        return no_draws(index_B)

    def place(self, draws_UB: FloatArray, sizes_B2: Int64Array) -> list[None]:  # noqa: ARG002
        """Return nothing: every image is cropped alike."""
        return [None] * len(sizes_B2)

    def make(self, image: Tensor, cut: None) -> Tensor:  # noqa: ARG002
        """Resize an image and cut its centre; of a thin image, cut what is far from the centre first."""
        short, long = sorted(image.shape[1:])
        if long > _THIN * short:
            return _thin_center_crop(image, self.crop)
        return F.center_crop(_resize_short_side(image, self.crop), [self.image_size, self.image_size])


def _resize_short_side(image: Tensor, crop: CropSpec) -> Tensor:
    return F.resize(image, [crop.short_side], InterpolationMode(crop.interpolation), antialias=True)


def _thin_center_crop(image: Tensor, crop: CropSpec) -> Tensor:
    """Resize and cut the middle of a thin image, uint8 (3, H, W), without resizing its whole length.

    A length of k times the short side becomes k times `crop.short_side`, so that a cut at whole multiples of the short side
    leaves the pixels' places. Two multiples on each side are as much as the antialiased filter reaches at most.
    """
    axis = 1 if image.shape[1] > image.shape[2] else 2
    short, long = image.shape[3 - axis], image.shape[axis]
    start = round((crop.short_side * long // short - crop.image_size) / 2)
    first = start // crop.short_side - 2
    last = (start + crop.image_size) // crop.short_side + 3
    piece = image.narrow(axis, first * short, (last - first) * short)
    middle = _resize_short_side(piece, crop).narrow(axis, start - first * crop.short_side, crop.image_size)
    return F.center_crop(middle, [crop.image_size, crop.image_size])


def resized_crop(
    image: Tensor, box: tuple[int, int, int, int], side: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Cut a box of (top, left, height, width) out of uint8 (3, H, W) and resize it to uint8 (3, side, side).

    Bit for bit torchvision's `resized_crop(..., antialias=True)`, in two thirds of its time: that hands the resize a view
    with gaps between its rows, for which torch leaves its vectorised path for channels-last bytes.
    """
    top, left, height, width = box
    cut = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    if (height, width) == (side, side):
        return cut[0]
    return torch.nn.functional.interpolate(cut, size=[side, side], mode=interpolation, antialias=True)[0]
