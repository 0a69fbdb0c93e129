"""Augmentation of training batches on the device: from the loader's bytes to normalised images, alike for every loader."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from rlpheads.loaders.augment.boxes import Cutout, PadCrop, RandomErasing
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.augment.policies import ColorJitter, make_policy
from rlpheads.loaders.augment.spec import AugmentSpec


class Augment(nn.Module):
    """Augment and normalise; every draw is keyed by (seed, epoch, canonical index) and a stream's name.

    World size, workers, loader and place of resume change no draw, and no augmentation shifts another's.

    Args:
        spec: the augmentations.
        normalize: bytes to standardised numbers.
        seed: key of the run.
    """

    def __init__(self, spec: AugmentSpec, normalize: Normalize, seed: int) -> None:
        super().__init__()
        self.on_bytes = nn.ModuleList()
        if spec.padding:
            self.on_bytes.append(PadCrop(spec.padding, seed))
        if spec.policy.name != "none":
            self.on_bytes.append(make_policy(spec.policy, seed))
        if any(spec.color_jitter):
            self.on_bytes.append(ColorJitter(spec.color_jitter, seed))
        self.normalize = normalize
        self.on_numbers = nn.ModuleList()
        if spec.cutout:
            self.on_numbers.append(Cutout(spec.cutout, seed))
        if spec.erase.probability:
            self.on_numbers.append(RandomErasing(spec.erase, seed))

    def forward(self, images_B3HW: Tensor, index_B: Tensor, epoch: int) -> Tensor:
        """Turn uint8 (B, 3, H, W) images with canonical indices (B,) into the model's input (B, 3, H, W).

        Padding rows (index -1) are treated like any other. The memory format stays.
        """
        in_channels_last = images_B3HW.is_contiguous(memory_format=torch.channels_last)
        num_rows = max(1, _values_at_once(images_B3HW.device) // images_B3HW[0].numel())
        parts = zip(images_B3HW.split(num_rows), index_B.split(num_rows), strict=True)
        augmented = torch.cat([self._augment_rows(*part, epoch) for part in parts])
        return augmented.contiguous(memory_format=torch.channels_last if in_channels_last else torch.contiguous_format)

    def _augment_rows(self, images_B3HW: Tensor, index_B: Tensor, epoch: int) -> Tensor:
        for operation in self.on_bytes:
            images_B3HW = operation(images_B3HW, index_B, epoch)
        images_B3HW = cast("Tensor", self.normalize(images_B3HW))
        for operation in self.on_numbers:
            images_B3HW = operation(images_B3HW, index_B, epoch)
        return images_B3HW


def _values_at_once(device: torch.device) -> int:
    """Return how many bytes of images are augmented at once: what fits a CPU's cache, or bounds a GPU's memory."""
    return 2**18 if device.type == "cpu" else 2**24
