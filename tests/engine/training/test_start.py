"""What is settled before the ranks meet, and what the user is told of it."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.files import read_config_file
from rlpheads.engine.config.learning import ModelConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.model.builder import build_model
from rlpheads.engine.model.plan import plan_model
from rlpheads.engine.runs.checkpoint import CheckpointError
from rlpheads.engine.runs.folder import claim
from rlpheads.engine.runs.resume import check_settings
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training.start import Start, settle_start


def settled(config: Config) -> Start:
    sources = open_sources(config)
    folder, lock = claim(config.run)
    with lock:
        return settle_start(config, plan_model(config, len(sources.train.manifest.classes)), sources, folder)


@pytest.mark.wrong("not ours")
def test_what_no_run_made_stays_and_is_named_in_one_line(tiny: Config):
    settled(tiny)
    folder = Path(tiny.run.dir) / tiny.run.name
    for number in range(10):
        (folder / f"note{number}.txt").write_text("")
    start = settled(replace(tiny, run=replace(tiny.run, overwrite=True)))
    (line,) = [warning for warning in start.warnings if "no run made it" in warning]
    assert line.startswith(f"left in {folder}, since no run made it: note0.txt, note1.txt, ")
    assert line.endswith("note7.txt and 2 more")
    assert (folder / "note9.txt").exists()


@pytest.mark.long
@pytest.mark.parametrize("flags", [{"overwrite": True}, {"resume": "never"}], ids=["overwrite", "never"])
def test_job_that_goes_on_with_its_own_run_says_so(tiny: Config, monkeypatch, flags):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this-job")
    config = replace(tiny, run=replace(tiny.run, **flags))
    first, again = settled(config), settled(config)
    assert not any("goes on with what it made" in warning for warning in first.warnings)
    assert any("goes on with what it made itself" in warning for warning in again.warnings)


@pytest.mark.long
@pytest.mark.wrong("paths")
def test_relative_paths_are_kept_absolute_and_are_the_same_folder_on_resume(spoiled: Config, tmp_path, monkeypatch):
    """Of images, and of weights, which a resumed run may not change."""
    monkeypatch.chdir(tmp_path)
    model = build_model(spoiled, 2).backbone
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    relative = replace(
        spoiled,
        data=replace(spoiled.data, root="images"),
        model=replace(spoiled.model, checkpoint="weights.pth"),
    )
    settled(relative)
    kept = read_config_file(str(Path(spoiled.run.dir) / spoiled.run.name / "config.yaml"))
    assert (kept["data"]["root"], kept["model"]["checkpoint"]) == (
        str(tmp_path / "images"),
        str(tmp_path / "weights.pth"),
    )
    assert settled(relative).config.data.root == str(tmp_path / "images")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = settled(parse_config(["--config", str(Path(spoiled.run.dir) / spoiled.run.name / "config.yaml")]))
    assert again.config.data.root == str(tmp_path / "images")
    with pytest.raises(ConfigError, match="was begun with other settings: model.checkpoint is '.*/other.pth' now"):
        settled(replace(relative, data=replace(relative.data, root=str(tmp_path / "images")), model=other(relative)))


def other(config: Config) -> ModelConfig:
    return replace(config.model, checkpoint="other.pth")


def test_run_from_before_paths_were_absolute_goes_on(tiny: Config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = asdict(replace(tiny, model=replace(tiny.model, checkpoint="weights.pth")))
    now = asdict(replace(tiny, model=replace(tiny.model, checkpoint=str(tmp_path / "weights.pth"))))
    check_settings(tmp_path, now, given)
    with pytest.raises(CheckpointError, match="model.checkpoint is"):
        check_settings(tmp_path, now, asdict(replace(tiny, model=replace(tiny.model, checkpoint="a/weights.pth"))))
