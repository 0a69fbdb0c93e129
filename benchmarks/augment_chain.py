"""From JPEG files in memory to the input of a model, ours and timm's: decode, crop, flip, RandAugment, floats, mixup."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform
from timm.data.mixup import Mixup
from torch import Tensor

from rlpheads.kernels.pixels.mixing_native import load_native_mixing
from rlpheads.kernels.pixels.pixel_native import load_native_pixels
from rlpheads.loaders.adapters.torch_transforms import TrainTransform
from rlpheads.loaders.augment.mixing import Mixer, MixSpec
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.augment.pipeline import Augment
from rlpheads.loaders.augment.spec import AugmentSpec, Interpolation, PolicySpec
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.decoding.decode import decode_rgb

WIDTH, HEIGHT = 500, 375
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photographs(count: int) -> list[bytes]:
    """Return JPEG files of 500 x 375 pixels, windows of two photographs."""
    files = []
    for number in range(count):
        left, top = number * 37 % (640 - WIDTH), number * 61 % (427 - HEIGHT)
        window = Image.fromarray(load_sample_images().images[number % 2]).crop((left, top, left + WIDTH, top + HEIGHT))
        file = io.BytesIO()
        window.save(file, "JPEG", quality=95)
        files.append(file.getvalue())
    return files


def our_chain(
    files: list[bytes], side: int, interpolation: Interpolation, epochs: Iterator[int]
) -> Callable[[], Tensor]:
    """Return a call that makes a batch as the torch loader and a training step do, in another epoch each time."""
    transform, index = TrainTransform(CropSpec(side), 0), np.arange(len(files))
    policy = PolicySpec("rand", magnitude=27, magnitude_std=1.5, probability=0.5, operations="timm")
    spec = AugmentSpec(policy=policy, interpolation=interpolation)
    augment = Augment(spec, Normalize(MEAN, STD), 0, load_native_pixels())
    mixer = Mixer(MixSpec(mixup=0.8, cutmix=1.0), 0, load_native_mixing())
    targets, sizes = torch.zeros(len(files), dtype=torch.int64), np.full((len(files), 2), (HEIGHT, WIDTH))

    def call() -> Tensor:
        epoch = next(epochs)
        images = torch.empty((len(files), side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        cuts = transform.place(transform.draw(epoch, index), sizes)
        for row, (data, cut) in enumerate(zip(files, cuts, strict=True)):
            images[row] = transform.make(decode_rgb(data), cut)
        batch = Batch(images, targets, torch.from_numpy(index), len(files))
        batch = batch.with_images(augment(batch.images, batch.index, epoch))
        return mixer(batch, epoch, 0).images

    return call


def timm_chain(files: list[bytes], side: int) -> Callable[[], Tensor]:
    """Return a call that makes a batch by timm's training transform and its mixup."""
    transform = create_transform(side, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", color_jitter=None)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode="pair", num_classes=1000)
    targets = torch.zeros(len(files), dtype=torch.int64)

    def read(data: bytes) -> Tensor:
        with Image.open(io.BytesIO(data)) as image:
            made: Tensor = transform(image.convert("RGB"))
        return made

    return lambda: mixup(torch.stack([read(data) for data in files]), targets)[0]
