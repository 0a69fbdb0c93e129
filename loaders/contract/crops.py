"""Crops and flips: random resized crops for training, central ones for evaluation, in integers alike for every loader."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rlpheads.loaders.contract.arrays import FloatArray, Int64Array
from rlpheads.loaders.contract.keyed_random import uniform_rows

NUM_CROP_TRIES = 10
NUM_CROP_DRAWS = 2 * NUM_CROP_TRIES + 2
"""Uniform numbers that a random crop takes: (area, ratio) of each try, then top and left."""
Interpolation = Literal["bilinear", "bicubic"]
"""How a resize weighs the pixels: by a triangle that reaches one step, or by Keys' cubic (a = -0.5) that reaches two."""
DRAWN_AT_ONCE = 2048
"""Samples whose crops are drawn together: enough to share the cost of calls, few enough for a processor's cache."""


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
            square, which is then shifted on the device (`rlpheads.loaders.augment.boxes.PadCrop`).
        interpolation: Of every resize, in training and in evaluation; antialiased where an image shrinks.
        early_sizes: Sides in the first epochs of training, one an epoch; later epochs have `image_size`. Boxes and flips are
            the same at any size.

    Raises:
        ValueError: For a value out of its range.
    """

    image_size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    crop_fraction: float = 0.875
    kind: Literal["random_resized", "whole"] = "random_resized"
    interpolation: Interpolation = "bilinear"
    early_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min((self.image_size, *self.early_sizes)) < 1:
            raise ValueError(
                f"image_size is {self.image_size} and early_sizes {self.early_sizes}; each must be at least 1 pixel"
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}; it must be two numbers with 0 < least <= most <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio is {self.ratio}; it must be two numbers with 0 < least <= most")
        if not 0 <= self.hflip <= 1:
            raise ValueError(f"hflip is {self.hflip}; a probability is in [0, 1]")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction is {self.crop_fraction}; it must be in (0, 1]")
        if self.interpolation not in get_args(Interpolation):
            known = ", ".join(get_args(Interpolation))
            raise ValueError(f"interpolation is {self.interpolation!r}; it must be one of {known}")

    def at(self, epoch: int) -> CropSpec:
        """Return how training images become squares in an epoch, from 0: with the size of that epoch alone."""
        if not self.early_sizes:
            return self
        size = self.early_sizes[epoch] if epoch < len(self.early_sizes) else self.image_size
        return replace(self, image_size=size, early_sizes=())

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
    return place_crops(crop, draw_crops(crop, seed, epoch, index_B), sizes_B2)


def draw_crops(crop: CropSpec, seed: int, epoch: int, index_B: Int64Array) -> FloatArray:
    """Draw the random numbers of crops and flips before any image is opened, for many samples at once, which is cheapest.

    Args:
        crop: Ranges of the draws.
        seed: Key of the run.
        epoch: Epoch, from 0.
        index_B: Canonical indices.

    Returns:
        float64 (U, B), numbers for `place_crops`: whether it is flipped; if crops are random, uniform numbers for top and
        left, then the heights of the tries, then their widths, in an image of area 1.
    """
    flip_1B = uniform_rows(seed, epoch, index_B, num_draws=1, stream="flips") < crop.hflip
    if crop.kind == "whole":
        return flip_1B.astype(np.float64)
    uniform_UB = uniform_rows(seed, epoch, index_B, num_draws=NUM_CROP_DRAWS, stream="crops")
    area_VB, ratio_VB, place_2B = uniform_UB[0:-2:2], uniform_UB[1:-2:2], uniform_UB[-2:]
    fraction_VB = crop.scale[0] + area_VB * (crop.scale[1] - crop.scale[0])
    least = math.log(crop.ratio[0])
    aspect_VB = np.exp(least + ratio_VB * (math.log(crop.ratio[1]) - least))
    draws_UB = np.empty((3 + 2 * NUM_CROP_TRIES, len(index_B)))
    draws_UB[:1], draws_UB[1:3] = flip_1B, place_2B
    np.divide(fraction_VB, aspect_VB, out=draws_UB[3 : 3 + NUM_CROP_TRIES])
    np.multiply(fraction_VB, aspect_VB, out=draws_UB[3 + NUM_CROP_TRIES :])
    np.sqrt(draws_UB[3:], out=draws_UB[3:])
    return draws_UB


def no_draws(index_B: Int64Array) -> FloatArray:
    """Return the draws of crops without randomness: float64 (0, B)."""
    return np.empty((0, len(index_B)))


def place_crops(crop: CropSpec, draws_UB: FloatArray, sizes_B2: Int64Array) -> tuple[Int64Array, NDArray[np.bool_]]:
    """Turn the numbers of `draw_crops` into crops and flips, once the (height, width) of the images is known.

    Returns:
        int64 (B, 4) boxes of (top, left, height, width) in pixels, and bool (B,), which of them are flipped.
    """
    flip_B = draws_UB[0].astype(np.bool_)
    if crop.kind == "whole":
        return central_squares(sizes_B2), flip_B
    place_2B, shape_2VB = draws_UB[1:3], draws_UB[3:].reshape(2, NUM_CROP_TRIES, len(sizes_B2))
    return _random_resized_crops(place_2B, shape_2VB, sizes_B2, crop.ratio), flip_B


def central_squares(sizes_B2: Int64Array) -> Int64Array:
    """Return the largest square in the middle of each image: int64 (B, 4) of (top, left, height, width) in pixels."""
    sides_B2 = np.repeat(sizes_B2.min(axis=1, keepdims=True), 2, axis=1)
    return np.concatenate([(sizes_B2 - sides_B2) // 2, sides_B2], axis=1)


def central_boxes(crop: CropSpec, sizes_B2: Int64Array) -> tuple[FloatArray, Int64Array]:
    """Return evaluation's box of each image: resize of the short side and central crop as one resampling.

    Sizes and places are rounded as torchvision's `resize` and `center_crop` do.

    Args:
        crop: Size and margin.
        sizes_B2: (height, width) of each image, in pixels.

    Returns:
        float64 (B, 4) boxes of (top, left, height, width) in pixels of the image, which may begin between two; and int64
        (B, 4): first row, first column, row and column behind the last, that the interpolation can reach.
    """
    short_B1 = sizes_B2.min(axis=1, keepdims=True)
    resized_B2 = np.where(sizes_B2 == short_B1, crop.short_side, crop.short_side * sizes_B2 // short_B1)
    step_B2 = sizes_B2 / resized_B2
    start_B2 = np.rint((resized_B2 - crop.image_size) / 2) * step_B2
    length_B2 = crop.image_size * step_B2
    reach_B2 = np.maximum(step_B2, 1) * (2 if crop.interpolation == "bicubic" else 1)
    first_B2 = np.floor(start_B2 - reach_B2).clip(0).astype(np.int64)
    end_B2 = np.minimum(np.ceil(start_B2 + length_B2 + reach_B2).astype(np.int64), sizes_B2)
    return np.concatenate([start_B2, length_B2], axis=1), np.concatenate([first_B2, end_B2], axis=1)


def _random_resized_crops(
    place_2B: FloatArray, shape_2VB: FloatArray, sizes_B2: Int64Array, ratio: tuple[float, float]
) -> Int64Array:
    """Return the crops of "Inception-style" training (Szegedy et al., 2015, arXiv:1409.4842).

    The distribution is that of torchvision's `RandomResizedCrop.get_params`: area uniform, log ratio uniform, up to ten
    tries until the crop fits, then the largest central crop within the ratios; every position equally likely.

    Args:
        place_2B: Uniform numbers for top and left.
        shape_2VB: Height and width of each try, in an image of area 1.
        sizes_B2: (height, width) of each image, in pixels.
        ratio: Least and most width over height.

    Returns:
        int64 (B, 4): top, left, height, width in pixels; at least one pixel, all within the image.
    """
    # All tries of all images are made at once, though the first mostly fits, and rare cases have their own branch: on arrays
    # this short, calls cost more than numbers.
    num_images = len(sizes_B2)
    sides_2B = sizes_B2.T.astype(np.float64, order="C")
    tries_2VB = shape_2VB * np.sqrt(sides_2B[0] * sides_2B[1])
    np.rint(tries_2VB, out=tries_2VB)
    crops_2B, fits_B = _first_fitting_tries(tries_2VB, sides_2B)
    if np.count_nonzero(crops_2B) < 2 * num_images:  # in an image of a few pixels, a try may have none
        tries_2VB[tries_2VB == 0] = sides_2B.max() + 1
        crops_2B, fits_B = _first_fitting_tries(tries_2VB, sides_2B)
    start_2B = place_2B * (sides_2B - crops_2B + 1.0)
    if np.count_nonzero(fits_B) < num_images:
        sides_2C = sides_2B[:, ~fits_B]
        crops_2B[:, ~fits_B] = _largest_crops(sides_2C, ratio)
        start_2B[:, ~fits_B] = (sides_2C - crops_2B[:, ~fits_B]) // 2
    boxes_4B = np.empty((4, num_images), dtype=np.int64)
    boxes_4B[:2], boxes_4B[2:] = start_2B, crops_2B
    return boxes_4B.T


def _first_fitting_tries(tries_2VB: FloatArray, sides_2B: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return each image's first try that is no larger than it, (2, B), and whether there is one, (B,)."""
    fits_2VB = tries_2VB <= sides_2B[:, None]
    fits_VB = fits_2VB[0] & fits_2VB[1]
    first_B = fits_VB.argmax(axis=0)
    first_B *= len(first_B)
    first_B += np.arange(len(first_B))  # places in (V, B)
    return tries_2VB.reshape(2, -1).take(first_B, axis=1), fits_VB.take(first_B)


def _largest_crops(sides_2B: FloatArray, ratio: tuple[float, float]) -> FloatArray:
    """Return the height and width of the largest crop within the ratios: (2, B), in whole pixels."""
    heights_B, widths_B = sides_2B
    tall_B, wide_B = np.rint(widths_B / ratio[0]), np.rint(heights_B * ratio[1])
    return np.stack([np.clip(tall_B, 1, heights_B), np.clip(wide_B, 1, widths_B)])
