"""What a store will cost, estimated from a few images: bytes of its files, seconds of encoding."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.sources import beton
from rlpheads.loaders.sources.beton import PAGE_SIZE
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.loaders.store.image_encoding import Encoding, encode_image


@dataclass(frozen=True)
class Estimate:
    """Cost of an image in the store, estimated from a few.

    Attributes:
        bytes_per_image: Mean size in the store.
        seconds_per_image: Mean time of one process to read, decode and encode one.
    """

    bytes_per_image: float
    seconds_per_image: float

    def file_bytes(self, num_images: int, page_size: int = PAGE_SIZE) -> float:
        """Return the size of a file of so many images: its tables fill whole pages, and an image lies within one."""
        tables = -(-(beton.DATA_OFFSET + num_images * beton.SAMPLE.itemsize) // page_size) * page_size
        images_on_a_page = max(1, int(page_size / max(self.bytes_per_image, 1)))
        full_pages = max(0, num_images - 1) // images_on_a_page
        last_page = (num_images - full_pages * images_on_a_page) * self.bytes_per_image
        return tables + full_pages * page_size + last_page + num_images * beton.ALLOCATION.itemsize


def estimate(source: ImageSource, encoding: Encoding, num_images: int = 32) -> Estimate:
    """Encode some images, evenly spaced over the split, and forget them; those that cannot be read are passed over.

    Raises:
        ImageReadError: If none of them can be read.
    """
    num_bytes: list[int] = []
    failure, begin = None, perf_counter()
    chosen = np.unique(np.linspace(0, source.manifest.num_samples - 1, num_images).astype(int)).tolist()
    for index in [chosen[0], *chosen]:  # the first once more: it also loads what is only loaded once
        try:
            if index == chosen[0]:
                num_bytes, begin = [], perf_counter()
            num_bytes.append(len(encode_image(source, index, encoding).data))
        except ImageReadError as error:
            failure = error
    if failure is not None and not num_bytes:
        raise failure
    return Estimate(sum(num_bytes) / len(num_bytes), (perf_counter() - begin) / len(chosen))
