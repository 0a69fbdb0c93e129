"""The settings of a run's augmentations, in the terms of the loaders."""

from __future__ import annotations

from rlpheads.engine.config import DataConfig
from rlpheads.loaders.augment_spec import AugmentSpec, EraseSpec


def augment_spec(data: DataConfig) -> AugmentSpec:
    """Return what is done to training images on the device."""
    augment = data.augment
    return AugmentSpec(
        padding=data.crop_padding if data.crop == "pad" else 0,
        cutout=augment.cutout,
        erase=EraseSpec(augment.erase, augment.erase_area, augment.erase_ratio, augment.erase_fill),
    )
