"""EXIF orientation: how an image must be turned to stand as it was taken (Exif 2.32, tag 0x0112)."""

from __future__ import annotations

import io
import warnings

from PIL import Image
from torch import Tensor

from rlpheads.loaders.decoding.image_headers import JPEG_SIGNATURE, PNG_SIGNATURE

UPRIGHT = 1
_TAG = 0x0112


def exif_orientation(data: bytes) -> int:
    """Return the orientation that a file's EXIF data name, from 1 to 8; 1 where there are none, or they cannot be read.

    That of a TIFF file is a part of the format, which Pillow has applied to the pixels: 1. It takes a few microseconds for a
    file without EXIF data.
    """
    if not _may_have_exif(data):
        return UPRIGHT
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            orientation = image.getexif().get(_TAG, UPRIGHT)
    # Pillow's plugins raise whatever their parsing trips over; damage of the image itself is found when it is decoded.
    except Exception:
        return UPRIGHT
    return orientation if type(orientation) is int and 1 <= orientation <= 8 else UPRIGHT


def turn_upright(pixels_3HW: Tensor, orientation: int) -> Tensor:
    """Mirror and turn an image by its orientation, from 1 to 8: (3, H, W) or, from 5 on, (3, W, H)."""
    if orientation >= 5:
        pixels_3HW = pixels_3HW.transpose(1, 2)
    flipped = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation, ())
    return pixels_3HW.flip(flipped).contiguous() if flipped or orientation >= 5 else pixels_3HW


def _may_have_exif(data: bytes) -> bool:
    if data.startswith(JPEG_SIGNATURE):
        return b"Exif\0" in data
    if data.startswith(PNG_SIGNATURE):
        return b"eXIf" in data or b"Raw profile type" in data or b"XML:com.adobe.xmp" in data
    if data[:4] == b"RIFF":
        return b"EXIF" in data
    return data[4:8] == b"ftyp"
