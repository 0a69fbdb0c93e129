"""A run's images, from its settings: which set, which subset, and what is planted in the training split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlpheads.engine.checks.checks import check_config
from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.data import CanaryConfig, DataConfig, SubsetConfig, SyntheticConfig
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.schema import Config
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training.job import run

CANARIES = CanaryConfig(mislabelled=20, repeated=20, repeats=[2, 4], near_duplicates=10)


def with_data(config: Config, **changes: object) -> Config:
    return replace(config, data=replace(config.data, **changes))


def test_settings_reach_the_data(tiny: Config):
    small = open_sources(with_data(tiny, subset=SubsetConfig(per_class=10)))
    assert small.train.manifest.num_samples == 100
    assert small.heldout.manifest.num_samples == 360
    tail = open_sources(with_data(tiny, subset=SubsetConfig(per_class=100, imbalance=10))).train.manifest
    assert (tail.targets == 0).sum() == 100
    assert (tail.targets == 9).sum() == 10
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


@pytest.mark.long
def test_nothing_planted_leaves_images_and_folder_as_they_were(tiny: Config) -> None:
    plain = open_sources(tiny).train.manifest
    assert (
        open_sources(replace(tiny, data=replace(tiny.data, canaries=CanaryConfig(repeats=3)))).train.manifest == plain
    )
    config = replace(tiny, epochs=1, max_steps=1)
    assert run(config) == 0
    assert not (Path(config.run.dir) / config.run.name / "canaries.parquet").exists()


def test_held_out_images_are_never_planted(tiny: Config) -> None:
    planted = open_sources(replace(tiny, data=replace(tiny.data, label_noise=0.5, canaries=CANARIES)))
    assert planted.heldout.manifest == open_sources(tiny).heldout.manifest
    assert planted.train.manifest != open_sources(tiny).train.manifest


def test_one_number_of_copies_is_a_list_of_one(tiny: Config) -> None:
    def fingerprint(repeats: int | list[int]) -> str:
        canaries = CanaryConfig(repeated=5, repeats=repeats)
        return open_sources(replace(tiny, data=replace(tiny.data, canaries=canaries))).train.manifest.fingerprint

    assert fingerprint(3) == fingerprint([3]) != fingerprint([3, 2])


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.label_noise", "1"], "data.label_noise: got 1.0; allowed: a number at least 0 and below 1"),
        (["--data.canaries.repeats", "1"], "data.canaries.repeats: got 1; allowed: a number at least 2"),
        (["--data.canaries.repeats", "[2, 1]"], "data.canaries.repeats: got [2, 1]; allowed: numbers at least 2"),
        (["--data.canaries.repeats", "[]"], "data.canaries.repeats: got []; allowed: a number at least 2, or a list"),
        (["--data.canaries.mislabelled", "-1"], "data.canaries.mislabelled: got -1; allowed: a number at least 0"),
        (["--data.canaries.mislabelled", "2000"], "2000 mislabelled: these are 2000 different samples to plant in"),
    ],
)
def test_settings_that_cannot_be_planted(flags: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "planted.yaml").write_text("device: cpu\nbatch_size: 32\n")
    config = parse_config(["--config", str(tmp_path / "planted.yaml"), *flags])

    def check() -> None:
        check_config(config, world_size=1)
        open_sources(config)

    with pytest.raises(ConfigError) as caught:
        check()
    assert message in str(caught.value)


@pytest.mark.wrong("tree")
def test_what_the_scan_passed_over_is_one_line_of_a_run_for_both_splits(tiny: Config, tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(4):
            (tmp_path / label / f"{number}.jpg").write_bytes(b"not decoded here")
            (tmp_path / label / f"{number}.heic").write_bytes(b"passed over")
    data = replace(tiny.data, dataset="imagefolder", root=str(tmp_path), val_fraction=0.5)
    sources = open_sources(replace(tiny, data=data, batch_size=2))
    assert sources.remarks == (f"{tmp_path}: 8 passed over: 8 .heic",)
