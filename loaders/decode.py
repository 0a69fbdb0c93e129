"""Bytes of an image file to pixels: red, green and blue in uint8, or one clear error."""

from __future__ import annotations

import io
import os

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F


class ImageReadError(ValueError):
    """An image that cannot be read.

    It travels from a loader worker unchanged: the arguments below are all it holds.

    Attributes:
        index: Canonical index of the sample.
        path: Path of its file.
        reason: What went wrong.
    """

    def __init__(self, index: int, path: str, reason: str) -> None:
        super().__init__(index, path, reason)
        self.index = index
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        printable = os.fsencode(self.path).decode("utf-8", "backslashreplace")
        return f"image {self.index} ({printable}) cannot be read: {self.reason}"


def decode_rgb(data: bytes) -> Tensor:
    """Decode a JPEG, PNG, GIF (its first frame) or WebP file with torchvision, and any other with Pillow.

    Grey, palette and CMYK images are converted, transparency is dropped, 16-bit values are scaled, and the EXIF
    orientation is not applied (the reference pipelines of ImageNet do not either).

    Returns:
        uint8 (3, H, W).

    Raises:
        ValueError: If neither can decode it, with both their reasons.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        pixels = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        return _decode_with_pillow(data, torchvision_reason=str(error).rpartition(", ")[2])
    if pixels.ndim == 4:
        pixels = pixels[0]
    if pixels.dtype == torch.uint16:
        pixels = F.to_dtype(pixels, torch.uint8, scale=True)
    return pixels


def _decode_with_pillow(data: bytes, *, torchvision_reason: str) -> Tensor:
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels_HWC = np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError(f"{torchvision_reason} Pillow does not know the format either") from None
    # Pillow's plugins raise whatever their parsing trips over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ValueError(f"{torchvision_reason} Pillow: {error}") from error
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)
