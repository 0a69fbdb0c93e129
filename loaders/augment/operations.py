"""The operations that policies choose from, how strong they are in each space, and what they come to for each image's bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlpheads.loaders.augment.pixel_plan import NUM_VALUES, PixelKind, PixelStep
from rlpheads.loaders.contract.arrays import FloatArray, Int64Array

OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert", "SolarizeAdd"),
)
NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
_RANDOM = NUMBER["Equalize"] + 1
"""The first so many operations are those of torchvision's RandAugment and TrivialAugment."""

MAX_MAGNITUDE = 30
"""The strongest magnitude of RandAugment, as in its paper and in torchvision."""


@dataclass(frozen=True)
class Space:
    """How strong the operations are at full strength.

    Attributes:
        shear: tangent of the angle.
        translate: pixels, and fraction of the image's side, which are added.
        rotate: degrees.
        enhance: what is added to or taken from the ratio 1 of brightness, colour, contrast and sharpness.
        posterize: bits that are kept at no strength, and how many fewer at full strength.
        round_bits_up: whether the number of kept bits is rounded up, instead of to the nearest.
        solarize: least byte that is not inverted at no strength.
        solarize_add: what is added to bytes below 128.
    """

    shear: float
    translate: tuple[float, float]
    rotate: float
    enhance: float
    posterize: tuple[int, int]
    round_bits_up: bool = False
    solarize: int = 255
    solarize_add: int = 0


PAPER_SPACE = Space(shear=0.3, translate=(0.0, 150 / 331), rotate=30.0, enhance=0.9, posterize=(8, 4))
WIDE_SPACE = Space(shear=0.99, translate=(32.0, 0.0), rotate=135.0, enhance=0.99, posterize=(8, 6))
TIMM_SPACE = replace(
    PAPER_SPACE, translate=(0.0, 0.45), posterize=(4, 4), round_bits_up=True, solarize=256, solarize_add=110
)
RAND_SETS = {"torchvision": (range(_RANDOM), PAPER_SPACE), "timm": (range(1, len(OPERATIONS)), TIMM_SPACE)}
"""Numbers of the operations that RandAugment chooses from, and how strong they are."""
_KINDS = np.array(
    [
        *(PixelKind.UNCHANGED, *[PixelKind.WARP] * 5, PixelKind.BRIGHTNESS, PixelKind.COLOR, PixelKind.CONTRAST),
        *(PixelKind.SHARPNESS, PixelKind.POSTERIZE, PixelKind.SOLARIZE, PixelKind.AUTOCONTRAST, PixelKind.EQUALIZE),
        *(PixelKind.SOLARIZE, PixelKind.SOLARIZE_ADD),
    ],
    dtype=np.int32,
)
"""What each of OPERATIONS comes to."""


class DrawnOperation(NamedTuple):
    """One operation of a policy for each image.

    Attributes:
        number_B: int64, position in OPERATIONS.
        strength_B: floating point from −1 to 1; the sign counts where an operation has two directions.
    """

    number_B: Int64Array
    strength_B: NDArray[np.floating]

    def plan(self, space: Space, size: tuple[int, int]) -> PixelStep:
        """Return what it comes to, strength 1 being that of a space, for images of (H, W) pixels."""
        number_B, strength_B = self
        unsigned_B = np.abs(strength_B)
        values_B6 = np.zeros((len(number_B), NUM_VALUES), dtype=np.float32)

        def put(column_B: NDArray[np.floating] | float, *names: str) -> None:
            chosen_B = np.isin(number_B, [NUMBER[name] for name in names])
            column_C = np.broadcast_to(column_B, len(number_B))[chosen_B]
            values_B6[chosen_B, :2] = np.stack([column_C, 1 - column_C], axis=1)

        put(1 + strength_B * space.enhance, "Brightness", "Color", "Contrast", "Sharpness")
        put(kept_bits(unsigned_B, space), "Posterize")
        # A little less than the product: 255 × 14/15 is 238, and no rounding may put it just above.
        put(space.solarize * (1 - unsigned_B) - 1e-3, "Solarize")
        put(0.0, "Invert")
        put(unsigned_B * space.solarize_add, "SolarizeAdd")
        kind_B = _KINDS[number_B]
        warped_B = kind_B == PixelKind.WARP
        values_B6[warped_B] = _warp_matrices(number_B[warped_B], strength_B[warped_B], space, size)
        return PixelStep(kind_B, values_B6)


def kept_bits(unsigned_B: NDArray[np.floating], space: Space) -> NDArray[np.floating]:
    """Return how many bits "Posterize" keeps at strengths from 0 to 1: whole numbers (B,), at least 1."""
    bits_B = space.posterize[0] - space.posterize[1] * unsigned_B
    # A little less than the product, as above: 4 × 3/4 is 3, and no rounding may make a fourth bit of it.
    return np.maximum(np.ceil(bits_B - 1e-3) if space.round_bits_up else np.rint(bits_B), 1)


def _warp_matrices(
    number_W: Int64Array, strength_W: NDArray[np.floating], space: Space, size: tuple[int, int]
) -> FloatArray:
    """Return the maps of `pixel_operations.warp` for operations that shear, shift or rotate: float64 (W, 6)."""

    def among(values_W: NDArray[np.floating], name: str) -> NDArray[np.floating]:
        return np.where(number_W == NUMBER[name], values_W, 0)

    pixels_plus, fraction = space.translate
    right_W, below_W = (
        among(np.trunc(strength_W * (pixels_plus + fraction * side)), name)
        for name, side in (("TranslateX", size[1]), ("TranslateY", size[0]))
    )
    across_W, down_W = (among(strength_W * space.shear, name) for name in ("ShearX", "ShearY"))
    return affine_matrices((across_W, down_W), (right_W, below_W), among(strength_W * space.rotate, "Rotate"), size)


def affine_matrices(
    shear: tuple[NDArray[np.floating], NDArray[np.floating]],
    shift: tuple[NDArray[np.floating], NDArray[np.floating]],
    degrees_B: NDArray[np.floating],
    size: tuple[int, int],
) -> FloatArray:
    """Return the maps of `pixel_operations.warp` for images that are sheared, shifted or rotated: float64 (B, 6).

    At most one of the three may be other than 0 for each image.

    Args:
        shear: horizontal shear (x by y) and vertical shear (y by x), about the top left corner: (B,) each.
        shift: pixels to the right and down.
        degrees_B: anticlockwise, about the middle.
        size: H and W of the images.
    """
    radians_B = np.deg2rad(degrees_B)
    cos_B, sin_B = np.cos(radians_B), np.sin(radians_B)
    (across_B, down_B), (right_B, below_B) = shear, shift
    x_row = (cos_B, across_B - sin_B, across_B * (size[0] / 2) - right_B)
    y_row = (down_B + sin_B, cos_B, down_B * (size[1] / 2) - below_B)
    return np.stack([*x_row, *y_row], axis=1).astype(np.float64)
