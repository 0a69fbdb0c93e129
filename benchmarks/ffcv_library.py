"""FFCV as its own documentation uses it: the loop that the adapter in loaders/adapters/ffcv_loader.py is measured against."""

from __future__ import annotations

from pathlib import Path

from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage


def ffcv_library_loader(beton: Path, batch_size: int, num_threads: int, image_size: int, *, train: bool) -> Loader:
    """Return FFCV's own loader of a store, uint8 images, labels and indices; iterate over it once an epoch.

    Args:
        beton: a split's file, as `rlpheads convert` wrote it.
        batch_size: rows of a batch.
        num_threads: threads that decode.
        image_size: side of the squares in pixels.
        train: random crops and flips in random order; or the central crop in the file's order.
    """
    if train:
        image = [RandomResizedCropRGBImageDecoder((image_size, image_size)), RandomHorizontalFlip()]
    else:
        image = [CenterCropRGBImageDecoder((image_size, image_size), ratio=0.875)]
    return Loader(
        str(beton),
        batch_size=batch_size,
        num_workers=num_threads,
        order=OrderOption.RANDOM if train else OrderOption.SEQUENTIAL,
        drop_last=train,
        os_cache=True,
        pipelines={
            "image": [*image, ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor()],
            "index": [IntDecoder(), ToTensor()],
        },
    )
