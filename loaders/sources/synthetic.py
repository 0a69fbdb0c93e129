"""Synthetic images, computed instead of read: to measure the cost of everything but decoding, at any size of data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.hashing import hash64, stream_key
from rlpheads.loaders.contract.manifest import Manifest


@dataclass(frozen=True)
class SyntheticSpec:
    """How many images of which size.

    Attributes:
        train: Training images.
        val: Held-out images.
        classes: Classes, as equally often as can be.
        side: Side of the square images, in pixels.

    Raises:
        DatasetError: For fewer than 2 classes, a split with fewer images than classes, or a side below 1.
    """

    train: int = 10_000
    val: int = 1_000
    classes: int = 10
    side: int = 224

    def __post_init__(self) -> None:
        if self.classes < 2 or self.side < 1:
            raise DatasetError(f"{self}: there must be at least 2 classes, and a side of at least 1 pixel")
        for split in ("train", "val"):
            if getattr(self, split) < self.classes:
                raise DatasetError(
                    f"{getattr(self, split)} synthetic images in split {split!r} are fewer than the {self.classes} classes"
                )


@dataclass(frozen=True)
class SyntheticSource:
    """A split of computed images: noise about a colour that belongs to the class. Nothing is held in memory.

    Attributes:
        manifest: The split; names are synthetic/CLASS/NUMBER.
        side: Side of the images, in pixels.
    """

    manifest: Manifest
    side: int

    def read(self, index: int) -> Tensor:
        """Compute one image, a pure function of (split, class, index): uint8 (3, side, side)."""
        num_bytes = 3 * self.side * self.side
        key = stream_key(f"synthetic/{self.manifest.split}")
        noise = hash64(key, int(index), np.arange(-(-num_bytes // 8))).astype("<u8").view(np.uint8)[:num_bytes]
        colour = hash64(stream_key("synthetic colours"), int(self.manifest.targets[index]), np.arange(3)) >> np.uint64(
            57
        )
        pixels = (noise >> 1).reshape(3, self.side, self.side) + colour.astype(np.uint8)[:, None, None]
        return torch.from_numpy(pixels)


def open_synthetic(spec: SyntheticSpec) -> tuple[SyntheticSource, SyntheticSource]:
    """Return the training and the held-out images."""
    return _source(spec, spec.train, "train"), _source(spec, spec.val, "val")


def _source(spec: SyntheticSpec, num_samples: int, split: str) -> SyntheticSource:
    targets_N: Int64Array = np.arange(num_samples, dtype=np.int64) * spec.classes // num_samples
    classes = tuple(f"c{number:07d}" for number in range(spec.classes))
    names = [f"synthetic/{classes[target]}/{number:09d}".encode() for number, target in enumerate(targets_N)]
    sizes_N = np.full(num_samples, 3 * spec.side**2)
    manifest = Manifest.from_columns(names, targets_N, sizes_N, classes=classes, root=None, split=split)
    return SyntheticSource(manifest, spec.side)
