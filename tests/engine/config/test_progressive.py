"""Sizes of the training images by epoch."""

from dataclasses import replace

import pytest

from rlpheads.engine.config.data import DataConfig, ProgressiveConfig
from rlpheads.engine.config.schema import Config


@pytest.mark.parametrize(
    ("grows", "last_size", "sizes"),
    [
        (ProgressiveConfig(), 224, ()),
        (ProgressiveConfig(128, 0, 4), 256, (128, 160, 192, 224)),
        (ProgressiveConfig(160, 2, 5), 192, (160, 160, 160, 160, 192)),  # 170.7 and 181.3, rounded to multiples of 32
        (ProgressiveConfig(4, 1, 3, 2), 8, (4, 4, 6)),
    ],
)
def test_sides_grow_linearly_and_are_rounded(grows, last_size, sizes):
    assert grows.sizes(last_size) == sizes
    data = DataConfig(image_size=last_size, progressive=grows)
    assert data.early_sizes == sizes
    assert data.least_size == min((last_size, *sizes))


def test_evaluation_has_the_last_size_unless_it_has_its_own():
    config = Config(data=DataConfig(image_size=192, progressive=ProgressiveConfig(128, 0, 4)))
    assert config.evaluation_size == 192
    assert replace(config, eval=replace(config.eval, image_size=256)).evaluation_size == 256
