"""Decode the bytes of an image file to RGB pixels in uint8."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.decoding.image_codec import decode_stored
from rlpheads.loaders.decoding.image_headers import PNG_SIGNATURE, check_budget, first_gif_frame

_BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO = 258, 262, 0
"""Tags of TIFF, and a value of the second."""

PILLOW_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What Pillow is asked for. Of itself it tries every format that it knows, and starts Ghostscript for PostScript."""


@contextmanager
def reindexed_errors(index: int) -> Iterator[None]:
    """Re-raise an image's error with this index: that of the sample in the source that wraps the one read."""
    try:
        yield
    except ImageReadError as error:
        raise ImageReadError(int(index), error.path, error.reason) from error


def decode_rgb(data: bytes) -> Tensor:
    """Decode a JPEG, GIF (its first frame) or WebP file with torch's codecs, and any other with Pillow.

    Grey, palette and CMYK images are converted, transparency is dropped, 16-bit values are scaled, and the EXIF
    orientation is not applied (`rlpheads.loaders.decoding.orientation`). Grey values without a fixed range (32
    bits, floats) are refused. Of several frames the first alone is decoded.

    PNG is Pillow's: torchvision 0.29's decoder ends the whole process, by a segmentation fault, on most damaged files.

    Returns:
        uint8 (3, H, W).

    Raises:
        ValueError: If it cannot be decoded, with the reason (of both where both were asked), or is over the budget
            (`rlpheads.loaders.decoding.image_headers`).
    """
    if not data:
        raise ValueError("the file is empty")
    check_budget(data)
    if data.startswith(PNG_SIGNATURE):
        return _decode_with_pillow(data)
    data = first_gif_frame(data)
    try:
        pixels = decode_stored(data)
    except ValueError as error:
        return _decode_with_pillow(data, reason_before=str(error))
    return pixels[0] if pixels.ndim == 4 else pixels


def _decode_with_pillow(data: bytes, *, reason_before: str = "") -> Tensor:
    before = f"{reason_before} " if reason_before else ""
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            pixels_HWC = _rgb_of(image)
    except UnidentifiedImageError:
        raise ValueError(f"{before}Pillow does not know the format{' either' if before else ''}") from None
    # Pillow's plugins raise whatever their parsing trips over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ValueError(f"{before}Pillow: {error}") from error
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def _rgb_of(image: Image.Image) -> NDArray[np.uint8]:
    """Return uint8 (H, W, 3).

    Pillow itself clips grey of more than 8 bits at 255 where it should scale it, and takes no notice there of a TIFF in which
    0 is white.

    Raises:
        ValueError: If the values have no fixed range.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        grey_HW = (np.asarray(image) >> (_grey_bits(image) - 8)).astype(np.uint8)
        if _is_white_zero(image):
            grey_HW = 255 - grey_HW
        return np.repeat(grey_HW[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))


def _grey_bits(image: Image.Image) -> int:
    """Return how many bits the values of an image deeper than 8 bits take.

    Raises:
        ValueError: If that is not known, so that black and white are not either.
    """
    if image.format == "PPM" and image.mode == "I":
        return 16  # Pillow scales them, whatever the header names as the largest value
    if image.mode.startswith("I;16"):
        return int(image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]) if isinstance(image, TiffImageFile) else 16
    kind = "floating-point numbers" if image.mode == "F" else "signed or 32-bit integers"
    raise ValueError(f"its grey values are {kind}, which have no fixed black and white: convert it to 8 or 16 bits")


def _is_white_zero(image: Image.Image) -> bool:
    return isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
