"""Encode an image of a dataset for a .beton file: raw pixels or JPEG, perhaps made smaller."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.contract.keyed_random import uniforms
from rlpheads.loaders.decoding.image_codec import encode_jpeg
from rlpheads.loaders.sources.beton import JPG, RAW
from rlpheads.loaders.sources.datasets import EncodedSource, ImageSource

EncodingMode = Literal["raw", "jpg", "smart", "proportion"]
DEFAULT_QUALITY = 90
LARGEST_SIDE = 65_535
"""FFCV keeps widths and heights in 16 bits."""


@dataclass(frozen=True)
class Encoding:
    """How images are stored.

    Attributes:
        mode: "raw": pixels; "jpg": JPEG; "smart": JPEG where the pixels would take more than `smart_bytes`; "proportion":
            JPEG for the fraction `proportion` of the images, chosen by index.
        long_side: Images with a longer long side are made smaller, to this many pixels; None: they are not.
        short_side: The same for the short side; at most one of the two.
        quality: JPEG quality, 1 to 100. None: JPEG files that need not be made smaller are kept byte for byte, and others
            encoded at 90.
        smart_bytes: See `mode`.
        proportion: See `mode`.

    Raises:
        ValueError: For a value out of its range.
    """

    mode: EncodingMode = "jpg"
    long_side: int | None = None
    short_side: int | None = None
    quality: int | None = None
    smart_bytes: int = 256 * 256 * 3
    proportion: float = 0.5

    def __post_init__(self) -> None:
        if self.mode not in get_args(EncodingMode):
            raise ValueError(f"mode is {self.mode!r}; it must be one of {', '.join(get_args(EncodingMode))}")
        if self.long_side is not None and self.short_side is not None:
            raise ValueError("long_side and short_side are both given; an image is made smaller by one of them")
        for name, least, most in (("long_side", 1, LARGEST_SIDE), ("short_side", 1, LARGEST_SIDE), ("quality", 1, 100)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} is {value}; it must be from {least} to {most}")
        if self.smart_bytes < 0:
            raise ValueError(f"smart_bytes is {self.smart_bytes}; it must be at least 0")
        if not 0 <= self.proportion <= 1:
            raise ValueError(f"proportion is {self.proportion}; it must be in [0, 1]")


class StoredImage(NamedTuple):
    """An image as it is stored; `unreadable` says why it is a black pixel instead."""

    mode: int
    height: int
    width: int
    data: bytes
    unreadable: str | None = None


def encode_image(source: ImageSource, index: int, encoding: Encoding) -> StoredImage:
    """Read, make smaller and encode one image.

    Raises:
        ImageReadError: If it cannot be read, or is too large to be stored.
    """
    file, pixels_3HW = _read(source, index)
    smaller_3HW = shrink(pixels_3HW, encoding)
    height, width = smaller_3HW.shape[1:]
    if max(height, width) > LARGEST_SIDE:
        reason = f"it is {width} x {height} pixels, and FFCV stores {LARGEST_SIDE} a side at most; make it smaller"
        raise ImageReadError(index, source.manifest.name(index), reason)
    if not _is_jpeg(encoding, index, smaller_3HW):
        return StoredImage(RAW, height, width, smaller_3HW.permute(1, 2, 0).contiguous().numpy().tobytes())
    if encoding.quality is None and smaller_3HW is pixels_3HW and _ffcv_decodes(file, height, width):
        return StoredImage(JPG, height, width, file)
    jpeg = encode_jpeg(smaller_3HW.contiguous(), encoding.quality or DEFAULT_QUALITY)
    return StoredImage(JPG, height, width, jpeg)


def shrink(pixels_3HW: Tensor, encoding: Encoding) -> Tensor:
    """Return the image no larger than it may be, with torchvision's antialiased resize; the very image if it is not."""
    height, width = pixels_3HW.shape[1:]
    scale = 1.0
    if encoding.long_side is not None:
        scale = encoding.long_side / max(height, width)
    elif encoding.short_side is not None:
        scale = encoding.short_side / min(height, width)
    if scale >= 1:
        return pixels_3HW
    return F.resize(pixels_3HW, [max(1, round(height * scale)), max(1, round(width * scale))], antialias=True)


def _read(source: ImageSource, index: int) -> tuple[bytes, Tensor]:
    """Return an image's file (nothing, if it has none) and its pixels."""
    file = source.encoded(index) if isinstance(source, EncodedSource) else None
    if file is None:
        return b"", source.read(index)
    assert isinstance(source, EncodedSource)
    return file, source.decode(index, file)


def _is_jpeg(encoding: Encoding, index: int, pixels_3HW: Tensor) -> bool:
    if encoding.mode == "smart":
        return pixels_3HW.numel() > encoding.smart_bytes
    if encoding.mode == "proportion":
        return uniforms(0, 0, np.array([index]), 1, stream="proportion")[0, 0] < encoding.proportion
    return encoding.mode == "jpg"


def _ffcv_decodes(file: bytes, height: int, width: int) -> bool:
    """Whether a file is a JPEG that FFCV's decoder reads without complaint: it reads no CMYK, and no other format."""
    if not file.startswith(b"\xff\xd8\xff"):
        return False
    try:
        with Image.open(io.BytesIO(file), formats=("JPEG",)) as image:
            if image.format != "JPEG" or image.size != (width, height):
                return False
    except (UnidentifiedImageError, OSError):
        return False
    from rlpheads.loaders.adapters.ffcv_kernels import imdecode  # compiles nothing, but loads numba

    pixels = np.empty(3 * height * width, dtype=np.uint8)
    where = (height, width, 0, 0, 1, 1, False, False)
    return imdecode(file, len(file), height, width, pixels.ctypes.data, *where) == 0
