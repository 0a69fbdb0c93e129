"""The record of a run that was stopped, or whose record was damaged: equal to an undisturbed one's, or the loss is told."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from real_runs import without_times
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlpheads.engine.config.schema import Config
from rlpheads.engine.training import job

pytestmark = pytest.mark.long
TIMES = ("/images_per_second", "data_wait", "seconds", "/slowest_rank")
STEPS_PER_EPOCH = 5


@pytest.fixture
def few(tiny: Config) -> Config:
    """Five steps an epoch, and windows that do not end with them."""
    return replace(tiny, batch_size=32, log_every=3, data=replace(tiny.data, val_fraction=0.9))


def named(config: Config, name: str, **changes) -> Config:
    return replace(config, run=replace(config.run, name=name), **changes)


def folder_of(config: Config) -> Path:
    return Path(config.run.dir) / config.run.name


def lines(config: Config) -> list[dict]:
    rows = [json.loads(line) for line in (folder_of(config) / "metrics.jsonl").read_text().splitlines()]
    return without_times(rows)


def curves(config: Config) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder_of(config) / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    names = [name for name in events.Tags()["scalars"] if not name.endswith(TIMES)]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def test_a_stop_in_the_middle_of_a_window_leaves_no_trace(few):
    """At every kind of step: inside a window, at its end, behind it, at an epoch's end."""
    whole, stopped = named(few, "whole"), named(few, "stopped")
    assert job.run(whole) == 0
    for step in (1, 3, 5, 7):
        assert job.run(replace(stopped, max_steps=step)) == 0
        assert [row["step"] for row in lines(stopped) if row["kind"] == "step"][-1] == step, "nothing is left unsaid"
    assert job.run(stopped) == 0
    assert lines(stopped) == lines(whole)
    assert curves(stopped) == curves(whole)


@pytest.mark.wrong("run folder")
def test_a_damaged_record_is_told_once_and_training_goes_on(few, capsys):
    config = named(few, "damaged", max_steps=STEPS_PER_EPOCH + 1)
    assert job.run(config) == 0
    folder = folder_of(config)
    (folder / "metrics.jsonl").unlink()
    (folder / "ledger/epoch=0000/clean.parquet").unlink()
    (folder / ".config.yaml.123.tmp").write_text("torn")
    (folder / "checkpoints/.step=000000006.old").mkdir()
    stopping = replace(config, checkpoint=replace(config.checkpoint, on_damage="stop"), max_steps=None)
    with pytest.raises(
        ValueError, match=r"metrics\.jsonl is missing; ledger/epoch=0000/clean\.parquet is missing; put"
    ):
        job.run(stopping)
    told = "metrics.jsonl is missing; ledger/epoch=0000/clean.parquet is missing; training goes on"
    for is_told in (True, False):
        capsys.readouterr()
        assert job.run(replace(config, max_steps=None)) == 0
        assert (told in capsys.readouterr().out) is is_told
        warnings = json.loads((folder / "status.json").read_text())["warnings"]
        assert any(told in warning for warning in warnings) is is_told
    assert not list(folder.glob(".*.tmp"))
    assert not list(folder.glob("checkpoints/.step=*"))
