"""Where an image is cut: keyed random crops and flips for training, in integers that every loader follows exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlpheads.loaders.order import FloatArray, Int64Array, SampleStream, uniforms

NUM_TRIES = 10
NUM_CROP_DRAWS = 2 * NUM_TRIES + 2
"""Uniform numbers that a random crop takes: (area, ratio) of each try, then top and left."""


@dataclass(frozen=True)
class CropSpec:
    """How an image becomes a square of the model's size.

    Attributes:
        image_size: Side of the square, in pixels.
        scale: Least and most area of a training crop, as a fraction of the image.
        ratio: Least and most width over height of a training crop.
        hflip: Probability of a horizontal flip in training.
        crop_fraction: Evaluation resizes the short side to floor(image_size / crop_fraction) and cuts the centre.
        kind: What training cuts out: "random_resized" takes a box of random area and ratio, "whole" the largest central
            square, which is then shifted on the device (`rlpheads.loaders.augment_boxes.PadCrop`).

    Raises:
        ValueError: For a value out of its range.
    """

    image_size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    crop_fraction: float = 0.875
    kind: Literal["random_resized", "whole"] = "random_resized"

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it must be at least 1 pixel")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}; it must be two numbers with 0 < least <= most <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio is {self.ratio}; it must be two numbers with 0 < least <= most")
        if not 0 <= self.hflip <= 1:
            raise ValueError(f"hflip is {self.hflip}; a probability is in [0, 1]")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction is {self.crop_fraction}; it must be in (0, 1]")

    @property
    def short_side(self) -> int:
        """Short side to which evaluation resizes, in pixels (rounded down, as timm does)."""
        return math.floor(self.image_size / self.crop_fraction)


def keyed_crops(
    crop: CropSpec, seed: int, epoch: int, index_B: Int64Array, sizes_B2: Int64Array
) -> tuple[Int64Array, NDArray[np.bool_]]:
    """Return the training crops and flips of some samples, a pure function of (seed, epoch, index) and the size.

    Args:
        crop: Ranges of the draws.
        seed: Key of the run.
        epoch: Epoch, from 0.
        index_B: Canonical indices.
        sizes_B2: (height, width) of each image, in pixels.

    Returns:
        int64 (B, 4) boxes of (top, left, height, width) in pixels, and bool (B,), which of them are flipped.
    """
    flip_B = flips(seed, epoch, index_B, crop.hflip)
    if crop.kind == "whole":
        return central_squares(sizes_B2), flip_B
    stream = SampleStream.of(seed, epoch, index_B, "crops")
    return random_resized_crop_boxes(stream, sizes_B2[:, 0], sizes_B2[:, 1], crop.scale, crop.ratio), flip_B


def central_squares(sizes_B2: Int64Array) -> Int64Array:
    """Return the largest square in the middle of each image: int64 (B, 4) of (top, left, height, width) in pixels."""
    sides_B2 = np.repeat(sizes_B2.min(axis=1, keepdims=True), 2, axis=1)
    return np.concatenate([(sizes_B2 - sides_B2) // 2, sides_B2], axis=1)


def central_boxes(crop: CropSpec, sizes_B2: Int64Array) -> tuple[FloatArray, Int64Array]:
    """Return the box of each image that a resize of its short side and a central crop come to, in one resampling.

    Sizes and places are rounded as torchvision's `resize` and `center_crop` do.

    Args:
        crop: Size and margin.
        sizes_B2: (height, width) of each image, in pixels.

    Returns:
        float64 (B, 4) boxes of (top, left, height, width) in pixels of the image, which may begin between two; and int64
        (B, 4): first row, first column, row and column behind the last, that a triangle as wide as one step can reach.
    """
    short_B1 = sizes_B2.min(axis=1, keepdims=True)
    resized_B2 = np.where(sizes_B2 == short_B1, crop.short_side, crop.short_side * sizes_B2 // short_B1)
    step_B2 = sizes_B2 / resized_B2
    start_B2 = np.rint((resized_B2 - crop.image_size) / 2) * step_B2
    length_B2 = crop.image_size * step_B2
    reach_B2 = np.maximum(step_B2, 1)
    first_B2 = np.floor(start_B2 - reach_B2).clip(0).astype(np.int64)
    end_B2 = np.minimum(np.ceil(start_B2 + length_B2 + reach_B2).astype(np.int64), sizes_B2)
    return np.concatenate([start_B2, length_B2], axis=1), np.concatenate([first_B2, end_B2], axis=1)


def flips(seed: int, epoch: int, index_B: Int64Array, probability: float) -> NDArray[np.bool_]:
    """Return which samples are flipped in this epoch: bool (B,)."""
    return uniforms(seed, epoch, index_B, 1, stream="flips")[:, 0] < probability


def random_resized_crop_boxes(
    stream: SampleStream,
    heights_B: Int64Array,
    widths_B: Int64Array,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Int64Array:
    """Turn uniform numbers into the crops of "Inception-style" training (Szegedy et al., 2015, arXiv:1409.4842).

    The distribution is that of torchvision's `RandomResizedCrop.get_params`: area uniform, log ratio uniform, up to ten
    tries until the crop fits, then the largest central crop within the ratios; every position equally likely.

    Args:
        stream: Uniform numbers of each sample, of which a crop takes NUM_CROP_DRAWS.
        heights_B: Heights of the images, in pixels.
        widths_B: Widths of the images, in pixels.
        scale: Least and most area, as a fraction of the image.
        ratio: Least and most width over height.

    Returns:
        int64 (B, 4): top, left, height, width in pixels; at least one pixel, all within the image.
    """
    shape = _ShapeRanges(scale, ratio)
    area_B, log_ratio_B, *place_2B = stream.uniforms((0, 1, NUM_CROP_DRAWS - 2, NUM_CROP_DRAWS - 1))
    crop_heights_B, crop_widths_B, fits_B = shape.crops(area_B, log_ratio_B, heights_B, widths_B)
    # Most crops fit at the first try. All other tries of those that do not are made at once: on arrays this short, calls
    # cost more than numbers.
    failed = np.flatnonzero(~fits_B)
    draws_UF = stream.of_rows(failed).uniforms(range(2, 2 * NUM_TRIES))
    heights_VF, widths_VF, fits_VF = shape.crops(draws_UF[0::2], draws_UF[1::2], heights_B[failed], widths_B[failed])
    first_F = fits_VF.argmax(axis=0), np.arange(len(failed))
    crop_heights_B[failed], crop_widths_B[failed] = heights_VF[first_F], widths_VF[first_F]
    centred = failed[~fits_VF[first_F]]
    if len(centred):
        crop_heights_B[centred], crop_widths_B[centred] = shape.largest(heights_B[centred], widths_B[centred])
    boxes_B4 = np.empty((len(heights_B), 4), dtype=np.int64)
    for axis, sides_B, crop_sides_B in ((0, heights_B, crop_heights_B), (1, widths_B, crop_widths_B)):
        room_B = sides_B - crop_sides_B
        boxes_B4[:, axis] = place_2B[axis] * (room_B + 1)
        boxes_B4[centred, axis] = room_B[centred] // 2
        boxes_B4[:, 2 + axis] = crop_sides_B
    return boxes_B4


@dataclass(frozen=True)
class _ShapeRanges:
    """Which crops are drawn: least and most area as a fraction of the image, and width over height."""

    scale: tuple[float, float]
    ratio: tuple[float, float]

    def crops(
        self, area: FloatArray, log_ratio: FloatArray, heights_B: Int64Array, widths_B: Int64Array
    ) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        """Return heights and widths in whole pixels, and whether they fit, for uniform numbers (B,) or (tries, B)."""
        least = math.log(self.ratio[0])
        pixels = (heights_B * widths_B) * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
        aspect = np.exp(least + log_ratio * (math.log(self.ratio[1]) - least))
        heights, widths = np.rint(np.sqrt(pixels / aspect)), np.rint(np.sqrt(pixels * aspect))
        fits = (heights <= heights_B) & (widths <= widths_B) & (np.minimum(heights, widths) > 0)
        return heights, widths, fits

    def largest(self, heights_B: Int64Array, widths_B: Int64Array) -> tuple[FloatArray, FloatArray]:
        """Return the height and width of the largest crop within the ratios."""
        tall_B, wide_B = np.rint(widths_B / self.ratio[0]), np.rint(heights_B * self.ratio[1])
        return np.clip(tall_B, 1, heights_B), np.clip(wide_B, 1, widths_B)
