"""Weights that say how their images were prepared start no run that prepares them otherwise."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rlpheads.engine.checks.checks import check_config
from rlpheads.engine.cli import main
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.schema import Config
from rlpheads.engine.runs.opened_run import read_run
from rlpheads.engine.training import job

MEAN = (0.1, 0.2, 0.3)
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def places(detached_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights wherever they may lie; those alone say nothing."""
    folder = tmp_path_factory.mktemp("weights")
    assert main(["export", str(detached_run), str(folder / "exported")]) == 0
    last = detached_run / "weights" / "last.safetensors"
    shutil.copy(last, folder / "alone.safetensors")
    return {
        "run": detached_run,
        "checkpoint": max((detached_run / "checkpoints").iterdir()),
        "file": last,
        "export": folder / "exported" / "model.safetensors",
        "alone": folder / "alone.safetensors",
    }


@pytest.fixture
def config(detached_run: Path, tmp_path: Path) -> Config:
    """Another run with the settings of the one whose weights these are."""
    there = read_run(detached_run).config
    return replace(there, run=replace(there.run, dir=str(tmp_path), name="next"))


def starting_from(config: Config, place: Path, **data: object) -> Config:
    return replace(config, model=replace(config.model, checkpoint=str(place)), data=replace(config.data, **data))


def complaint(config: Config) -> str:
    with pytest.raises(ConfigError) as caught:
        check_config(config, 1)
    return str(caught.value)


@pytest.mark.wrong("checkpoint")
@pytest.mark.parametrize("name", ["run", "checkpoint", "file", "export"])
def test_weights_that_say_how_they_were_trained_refuse_other_preparation(config, places, name):
    check_config(starting_from(config, places[name]), 1)
    assert complaint(starting_from(config, places[name], mean=MEAN)) == (
        f"model.checkpoint: the weights in {places[name]} were trained with data.mean [0.485, 0.456, 0.406], but the run has "
        'data.mean [0.1, 0.2, 0.3]; give --data.mean "[0.485, 0.456, 0.406]"'
    )
    said = complaint(starting_from(config, places[name], std=MEAN, interpolation="bicubic", eval_crop_fraction=0.5))
    for key, theirs in (("std", "[0.229, 0.224, 0.225]"), ("interpolation", "bilinear"), ("eval_crop_fraction", "1.0")):
        assert f'--data.{key} "{theirs}"' in said
    larger = starting_from(config, places[name], eval_crop_fraction=0.5)
    model = replace(larger.model, args=larger.model.args | {"dynamic_img_size": True})
    check_config(replace(larger, model=model, eval=replace(config.eval, image_size=12)), 1)


def test_of_weights_that_say_nothing_nothing_is_said(config, places):
    check_config(starting_from(config, places["alone"], mean=MEAN, interpolation="bicubic"), 1)


@pytest.mark.parametrize(
    "described", ["{", "[]", "{}", '{"mean": "x"}', '{"pretrained_cfg": 3}', '{"mean": [null, 1, 2], "input_size": 8}']
)
def test_a_config_json_of_something_else_says_nothing(config, places, tmp_path, described):
    file = tmp_path / "w.safetensors"
    shutil.copy(places["alone"], file)
    file.with_name("config.json").write_text(described)
    check_config(starting_from(config, file, std=MEAN), 1)
    file.with_name("config.json").write_text(json.dumps({"architecture": "vit", "std": [0.5, 0.5, 0.5]}))
    assert "were trained with data.std [0.5, 0.5, 0.5]" in complaint(starting_from(config, file, std=MEAN))


def test_a_run_that_goes_on_needs_the_weights_it_began_with_no_more(config, places, tmp_path):
    """As one that began before there was this check."""
    begun = replace(starting_from(config, tmp_path / "w.safetensors", mean=MEAN), epochs=1, max_steps=1)
    shutil.copy(places["export"], tmp_path / "w.safetensors")
    assert job.run(begun) == 0
    shutil.copy(places["export"].with_name("config.json"), tmp_path)
    assert job.run(replace(begun, max_steps=2)) == 0
    assert main(["evaluate", str(tmp_path / "next"), "--device", "cpu"]) == 0
    assert "were trained with data.mean" in complaint(replace(begun, run=replace(begun.run, overwrite=True)))
