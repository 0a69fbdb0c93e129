"""A run's data sets and augmentations, from its settings: trained with, evaluated without, the same after a resume."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from rlpheads.engine.config import AugmentConfig, Config, DataConfig, SubsetConfig, SyntheticConfig
from rlpheads.engine.config_errors import ConfigError
from rlpheads.engine.job import open_sources
from rlpheads.engine.resume import Position
from rlpheads.engine.training import Training

Build = Callable[..., Training]


def with_data(config: Config, **changes: object) -> Config:
    return replace(config, data=replace(config.data, **changes))


@pytest.fixture
def augmented(tiny: Config) -> Config:
    return with_data(tiny, crop="pad", crop_padding=2, augment=AugmentConfig(cutout=3, erase=0.5))


def test_training_images_are_augmented_and_evaluated_ones_are_not(augmented: Config, build: Build):
    training = build(augmented)
    batch = next(iter(training.loader))
    images, _ = training.prepare_training(batch)
    plain, _ = training.prepare(batch)
    assert torch.equal(plain, training.normalize(batch.images))
    assert (images != plain).flatten(1).any(1).all()
    # pad: the loader hands the whole image over
    assert torch.equal(batch.images[0], training.sources.train.read(int(batch.index[0])))


def test_an_augmented_image_depends_on_seed_epoch_and_index(augmented: Config, build: Build):
    one, two, other = build(augmented), build(augmented), build(augmented, seed=1)
    batch = next(iter(one.loader))
    first = one.prepare_training(batch)[0]
    assert torch.equal(two.prepare_training(batch)[0], first)
    assert not torch.equal(other.prepare_training(batch)[0], first)
    two.position = Position(1)
    assert not torch.equal(two.prepare_training(batch)[0], first)


def test_no_augmentation_is_what_it_was(tiny: Config, build: Build):
    training = build(tiny)
    batch = next(iter(training.loader))
    assert torch.equal(training.prepare_training(batch)[0], training.prepare(batch)[0])


def test_settings_reach_the_data(tiny: Config):
    small = open_sources(with_data(tiny, subset=SubsetConfig(per_class=10)))
    assert small.train.manifest.num_samples == 100
    assert small.heldout.manifest.num_samples == 360
    computed = open_sources(
        with_data(tiny, dataset="synthetic", image_size=9, synthetic=SyntheticConfig(train=64, val=8, classes=4))
    )
    assert computed.train.manifest.num_samples == 64
    assert computed.heldout.read(0).shape == (3, 9, 9)
    noisy = open_sources(with_data(tiny, label_noise=0.5, label_noise_kind="pairwise"))
    clean = open_sources(tiny)
    steps = (noisy.train.manifest.targets - clean.train.manifest.targets) % 10
    assert set(steps.tolist()) == {0, 1}


def test_too_few_images_of_a_class_are_a_config_error(tiny: Config):
    with pytest.raises(ConfigError, match="cannot give 500 samples of every class"):
        open_sources(with_data(tiny, subset=SubsetConfig(per_class=500)))
    with pytest.raises(ConfigError, match="fewer than the 10 classes"):
        open_sources(replace(tiny, data=DataConfig(dataset="synthetic", synthetic=SyntheticConfig(val=5))))
