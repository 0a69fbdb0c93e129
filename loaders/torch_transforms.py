"""Decoded images to the squares of a batch, with torchvision's antialiased bilinear resize on uint8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from rlpheads.loaders.crops import CropSpec, keyed_crops
from rlpheads.loaders.order import Int64Array


class ImageTransform(Protocol):
    """Makes images of any sizes equally large; a pure function of the images and (epoch, index)."""

    @property
    def image_size(self) -> int:
        """Side of the squares, in pixels."""
        ...

    def __call__(self, images: Sequence[Tensor], index_B: Int64Array, epoch: int) -> Tensor:
        """Turn B images, each uint8 (3, H, W), into uint8 (B, 3, image_size, image_size)."""
        ...


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop and horizontal flip, keyed by (seed, epoch, index).

    Attributes:
        crop: Ranges of the draws.
        seed: Key of the run.
    """

    crop: CropSpec
    seed: int

    @property
    def image_size(self) -> int:
        """Side of the squares, in pixels."""
        return self.crop.image_size

    def __call__(self, images: Sequence[Tensor], index_B: Int64Array, epoch: int) -> Tensor:
        """Cut, resize and perhaps flip each image."""
        sizes_B2 = np.array([image.shape[1:] for image in images], dtype=np.int64)
        boxes_B4, flip_B = keyed_crops(self.crop, self.seed, epoch, index_B, sizes_B2)
        size = [self.image_size, self.image_size]
        cut = [
            F.resized_crop(image, *box, size, antialias=True)
            for image, box in zip(images, boxes_B4.tolist(), strict=True)
        ]
        out_B3SS = torch.stack(cut)
        flipped = torch.from_numpy(np.flatnonzero(flip_B))
        out_B3SS[flipped] = out_B3SS[flipped].flip(-1)
        return out_B3SS


@dataclass(frozen=True)
class EvalTransform:
    """Resize of the short side and central crop; the same pixels in every epoch.

    Attributes:
        crop: Size and margin.
    """

    crop: CropSpec

    @property
    def image_size(self) -> int:
        """Side of the squares, in pixels."""
        return self.crop.image_size

    def __call__(self, images: Sequence[Tensor], index_B: Int64Array, epoch: int) -> Tensor:  # noqa: ARG002
        """Resize each image and cut its centre."""
        size = [self.image_size, self.image_size]
        short_side = [self.crop.short_side]
        return torch.stack([F.center_crop(F.resize(image, short_side, antialias=True), size) for image in images])
