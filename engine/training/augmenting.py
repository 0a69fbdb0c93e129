"""The settings of a run's augmentations, in the terms of the loaders."""

from __future__ import annotations

from dataclasses import asdict

from rlpheads.engine.config.data import DataConfig
from rlpheads.loaders.augment.mixing import MixSpec
from rlpheads.loaders.augment.spec import AugmentSpec, EraseSpec, PolicySpec


def mix_spec(data: DataConfig) -> MixSpec:
    """Return how pairs of training images are mixed."""
    return MixSpec(**asdict(data.mix))


def augment_spec(data: DataConfig) -> AugmentSpec:
    """Return what is done to training images on the device."""
    augment = data.augment
    return AugmentSpec(
        padding=data.crop_padding if data.crop == "pad" else 0,
        policy=PolicySpec(
            augment.policy,
            augment.rand_ops,
            augment.rand_magnitude,
            augment.rand_magnitude_std,
            augment.rand_probability,
            augment.rand_operations,
        ),
        color_jitter=augment.color_jitter,
        cutout=augment.cutout,
        erase=EraseSpec(augment.erase, augment.erase_area, augment.erase_ratio, augment.erase_fill),
    )
