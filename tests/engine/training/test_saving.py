"""When checkpoints are written inside an epoch, what they are good for, and what happens when one cannot be."""

import json
import os
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from real_runs import without_times
from safetensors import safe_open

from rlpheads.engine.config.learning import EarlyStoppingConfig, ScheduleConfig
from rlpheads.engine.config.run import CheckpointConfig, EvalConfig, LedgerConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.model.builder import build_model
from rlpheads.engine.model.initial_weights import load_weights, read_weights_file
from rlpheads.engine.runs import checkpoint_writing
from rlpheads.engine.runs.checkpoint import list_whole
from rlpheads.engine.runs.checkpoint_writing import write_checkpoint
from rlpheads.engine.training import job

pytestmark = pytest.mark.long


@pytest.fixture
def few(tiny: Config) -> Config:
    """Five steps an epoch."""
    return replace(
        tiny,
        log_every=3,
        data=replace(tiny.data, val_fraction=0.9),
        eval=EvalConfig(every=1, clean_every=0),
        ledger=LedgerConfig(every=0),
    )


def folder_of(config: Config) -> Path:
    return Path(config.run.dir) / config.run.name


def named(config: Config, name: str, **changes) -> Config:
    return replace(config, run=replace(config.run, name=name), **changes)


def steps_of(config: Config) -> list[int]:
    return [int(path.name[-9:]) for path in list_whole(folder_of(config) / "checkpoints")]


def result(config: Config) -> tuple[dict, list[dict]]:
    """Hashes of the weights, and all lines of metrics.jsonl but for times."""
    rows = [json.loads(line) for line in (folder_of(config) / "metrics.jsonl").read_text().splitlines()]
    return json.loads((folder_of(config) / "status.json").read_text())["weights_sha256"], without_times(rows)


def test_every_checkpoint_of_every_step_leads_to_the_same_end(few):
    """Each of them is gone on from, in turn, as a killed run would; those behind it are taken away."""
    config = named(few, "stepwise", checkpoint=CheckpointConfig(every_steps=2, keep=99))
    assert job.run(config) == 0
    assert steps_of(config) == [2, 4, 5, 6, 8, 10]
    whole = result(config)
    for step in (8, 6, 2):
        for path in list_whole(folder_of(config) / "checkpoints"):
            if int(path.name[-9:]) > step:
                shutil.rmtree(path)
        assert job.run(config) == 0
        assert result(config) == whole


def touch_when_running(config: Config, name: str) -> threading.Thread:
    """Put a request into the run folder as soon as the run has written its first line."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while not (folder_of(config) / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        (folder_of(config) / name).touch()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_files_ask_for_a_checkpoint_and_for_a_stop(few):
    config = named(few, "asked", epochs=40, log_every=1, eval=EvalConfig(every=99, clean_every=0))
    config = replace(config, checkpoint=CheckpointConfig(every=99, keep=99))
    for name, code in (("save.request", 0), ("stop.request", 75)):
        shutil.rmtree(folder_of(config), ignore_errors=True)
        toucher = touch_when_running(config, name)
        assert job.run(config) == code
        toucher.join()
        assert not (folder_of(config) / name).exists()
        status = json.loads((folder_of(config) / "status.json").read_text())
        if code:
            assert status["reason"].startswith("stopped by the file stop.request after step ")
            assert steps_of(config) == [status["step"]]
        else:
            assert len(steps_of(config)) == 2, "the one that was asked for, and the last"
    assert job.run(config) == 0


def test_minutes_between_checkpoints(few):
    config = named(few, "minutes", checkpoint=CheckpointConfig(every=99, every_minutes=1e-9, keep=99))
    assert job.run(config) == 0
    assert steps_of(config) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.wrong("run folder")
@pytest.mark.parametrize("background", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_checkpoint_that_cannot_be_written_is_told_and_three_in_a_row_end_the_run(few, capsys, background):
    """A file lies where the folder of a save must be made: it is nobody's to delete."""
    config = named(few, "failing", checkpoint=CheckpointConfig(every_steps=1, keep=99, background=background))
    in_the_way = folder_of(config) / "checkpoints" / ".step=000000002.tmp"

    def start(*steps: int, **settings) -> int:
        shutil.rmtree(folder_of(config), ignore_errors=True)
        in_the_way.parent.mkdir(parents=True)
        (folder_of(config) / ".rlpheads-run").write_text("{}")
        for step in steps:
            in_the_way.with_name(f".step={step:09d}.tmp").write_text("")
        return job.run(replace(config, checkpoint=replace(config.checkpoint, **settings)))

    assert start(2, 4) == 0
    printed = capsys.readouterr()
    assert printed.out.count("a checkpoint was not saved: cannot use") == 2
    assert printed.out.count("training goes on, and the next is tried when it is due") == 2
    assert steps_of(config) == [1, 3, 5, 6, 7, 8, 9, 10]
    assert start(2, on_failure="stop") == 1
    assert "000000002.tmp: File exists" in capsys.readouterr().err
    assert start(2, 3, 4) == 1
    assert steps_of(config) == [1]
    assert start(10) == 1, "the last one must be there"


def test_weights_of_the_best_epoch_and_of_every_epoch_are_kept(few):
    """The best by a figure that is early stopping's too; they can be started from."""
    config = named(few, "kept", epochs=3, early_stopping=EarlyStoppingConfig(metric="eval_loss"))
    config = replace(config, checkpoint=CheckpointConfig(best=True, weights_every=2))
    assert job.run(config) == 0
    rows = [row for row in result(config)[1] if row["kind"] == "epoch"]
    best = min(rows, key=lambda row: row["eval_loss"])
    weights = folder_of(config) / "weights"
    assert {path.name for path in weights.iterdir()} == {
        "best.safetensors",
        "epoch=0001.safetensors",
        "epoch=0002.safetensors",
        "last.safetensors",
    }
    with safe_open(weights / "best.safetensors", "pt") as file:
        facts = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    assert (facts["epoch"], facts["metric"], facts["value"]) == (
        str(best["epoch"]),
        "eval_loss",
        str(best["eval_loss"]),
    )
    network = build_model(config, 10).backbone
    load_weights(network, read_weights_file(weights / "best.safetensors"))
    torch.testing.assert_close(dict(network.state_dict()), tensors, rtol=0, atol=0)


def test_epochs_of_a_finished_run_are_raised(few, capsys):
    constant = replace(few, schedule=ScheduleConfig(name="constant"))
    whole, raised = named(constant, "whole", epochs=3), named(constant, "raised", epochs=1)
    assert job.run(whole) == job.run(raised) == 0
    capsys.readouterr()
    assert job.run(replace(raised, epochs=3)) == 0
    assert "the epochs are raised from 1 to 3" in capsys.readouterr().out
    assert result(raised)[0] == result(whole)[0]
    assert "epochs: 3" in (folder_of(raised) / "config.yaml").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a scheduling priority of their own on Linux only")
def test_the_thread_that_writes_gives_way_to_training(few, monkeypatch):
    priorities = []

    def noted(*args):
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return write_checkpoint(*args)

    monkeypatch.setattr(checkpoint_writing, "write_checkpoint", noted)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert job.run(named(few, "giving_way", epochs=1)) == 0
    assert set(priorities) == {min(before + 10, 19)}
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
