"""Encoded images of known size, as decoders other than torchvision take them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.decoding.plain_jpeg import plain_jpeg_size
from rlpheads.loaders.sources.datasets import EncodedSource, ImageSource


class EncodedImage(NamedTuple):
    """An image that decodes to what `ImageSource.read` returns, unless the coded data of a JPEG are damaged.

    Attributes:
        data: uint8, a plain JPEG (see `plain_jpeg`) or a portable pixmap.
        height: In pixels.
        width: In pixels.
    """

    data: NDArray[np.uint8]
    height: int
    width: int


def read_encoded(source: ImageSource, index_B: Int64Array) -> list[EncodedImage | ImageReadError]:
    """Read some images without decoding plain JPEGs; an unreadable image is replaced by its error.

    Any other image is read by the source itself and passed on as a pixmap, so that it looks the same through any decoder,
    or is refused in the same words. Of damage inside a plain JPEG decoders make different things, unless `rlpheads verify`
    has found it.
    """
    return [_read(source, int(index)) for index in index_B]


def read_pixmaps(source: ImageSource, index_B: Int64Array) -> list[EncodedImage | ImageReadError]:
    """Read some images, all decoded by the source; an unreadable image is replaced by its error."""
    return [_read_pixmap(source, int(index)) for index in index_B]


def _read(source: ImageSource, index: int) -> EncodedImage | ImageReadError:
    try:
        if not isinstance(source, EncodedSource) or (data := source.encoded(index)) is None:
            return pixmap(source.read(index))
        size = plain_jpeg_size(data)
        if size is None:
            return pixmap(source.decode(index, data))
    except ImageReadError as error:
        return error
    return EncodedImage(np.frombuffer(data, dtype=np.uint8), *size)


def _read_pixmap(source: ImageSource, index: int) -> EncodedImage | ImageReadError:
    try:
        return pixmap(source.read(index))
    except ImageReadError as error:
        return error


def pixmap(image: Tensor) -> EncodedImage:
    """Write an image, uint8 (3, H, W), as a portable pixmap (PPM): a header and the pixels."""
    _, height, width = image.shape
    header = np.frombuffer(f"P6\n{width} {height}\n255\n".encode(), dtype=np.uint8)
    return EncodedImage(np.concatenate([header, image.permute(1, 2, 0).numpy().reshape(-1)]), height, width)
