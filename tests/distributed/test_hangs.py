"""Ranks that stand still, and launchers that die: found in time, named, and ended; nothing runs on, nothing waits."""

import time

import psutil
import pytest
from real_runs import Runner, rank_processes

pytestmark = [pytest.mark.distributed, pytest.mark.long, pytest.mark.timeout(150)]
PATIENCE = ["--epochs", "200", "--distributed.timeout", "8"]
STUCK = """
import sys, threading, time

def stick():
    from rlpheads.engine.training.training import Training
    train_on = Training.train_on
    def stuck(self, batch):
        if self.num_updates == 6:
            while True:
                time.sleep(1)
        return train_on(self, batch)
    Training.train_on = stuck

import os
if os.environ.get("RANK") == os.environ.get("STUCK_RANK"):
    import builtins
    imported = builtins.__import__
    def watching(name, *args, **kwargs):
        module = imported(name, *args, **kwargs)
        if name == "rlpheads.engine.training" and "rlpheads.engine.training.job" in sys.modules:
            builtins.__import__ = imported
            stick()
        return module
    builtins.__import__ = watching
"""
"""A sitecustomize.py that has one rank wait for ever in its sixth step."""


def started(runner: Runner, name, *flags, ranks=2, launcher="rlpheads train"):
    make = runner.train_command if launcher == "rlpheads train" else runner.command
    process = runner.start_command(make(name, *PATIENCE, *flags, ranks=ranks))
    runner.wait_for_step(name, 5, process)
    return process


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_stopped_rank_is_named_and_ends_the_run(runner: Runner, victim, record_property):
    name = f"stopped_rank_{victim}"
    process = started(runner, name)
    rank = rank_processes(process)[victim]
    rank.suspend()
    began = time.monotonic()
    finished = runner.finish(process, name)
    record_property("seconds_to_detect", round(time.monotonic() - began))
    assert finished.code == 1, finished.output
    said = f"hang: no sign of life of rank {victim} ("
    assert said in finished.output
    assert f"process {rank.pid})" in finished.output
    assert "stopped by a signal" in finished.status["reason"]
    assert finished.status["status"] == "failed"
    assert "_forward_backward" in (finished.folder / f"hang.rank{1 - victim:04d}.txt").read_text()
    assert "gloo:" in (finished.folder / f"hang.rank{1 - victim:04d}.json").read_text()
    assert not rank.is_running()


def test_rank_that_hangs_alone_is_named_among_those_that_wait(runner: Runner, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(STUCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("STUCK_RANK", "1")
    finished = runner.finish(runner.start_command(runner.train_command("stuck", *PATIENCE, ranks=2)), "stuck")
    assert finished.code == 1, finished.output
    assert "hang: no progress of rank 1 (" in finished.status["reason"]
    assert "training step, step 6" in finished.status["reason"]
    assert "rank 0" not in finished.status["reason"]
    assert "stuck" in (finished.folder / "hang.rank0001.txt").read_text()


def test_stopped_loader_worker_is_named(runner: Runner):
    process = started(runner, "stopped_worker", "--data.workers", "1", ranks=1)
    (worker,) = psutil.Process(process.pid).children()
    worker.suspend()
    finished = runner.finish(process, "stopped_worker")
    assert finished.code == 1, finished.output
    assert "a loader worker gave no sign of life for 5" in finished.status["reason"]
    assert f"process {worker.pid}, which was stopped by a signal" in finished.status["reason"]
    assert not worker.is_running()


@pytest.mark.parametrize("launcher", [pytest.param("torchrun", marks=pytest.mark.slow), "rlpheads train"])
def test_ranks_of_a_dead_launcher_save_and_end(runner: Runner, launcher):
    name = f"orphans_of_{launcher.split()[0]}"
    process = started(runner, name, launcher=launcher)
    ranks = rank_processes(process).values()
    process.kill()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    for rank in alive:
        rank.kill()
    assert not alive
    finished = runner.finish(process, name)
    assert finished.status["status"] == "requeue"
    assert f"step={finished.status['step']:09d}" in {path.name for path in (finished.folder / "checkpoints").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "worker"])
def test_defaults_find_it_within_a_minute(runner: Runner, victim, record_property):
    name = f"defaults_{victim.replace(' ', '_')}"
    words = runner.train_command(name, "--epochs", "200", "--data.workers", "1", ranks=2)
    process = runner.start_command(words)
    runner.wait_for_step(name, 5, process)
    ranks = rank_processes(process)
    stopped = ranks[0].children()[0] if victim == "worker" else ranks[int(victim[-1])]
    stopped.suspend()
    began = time.monotonic()
    status = runner.folder / name / "status.json"
    while "running" in status.read_text() and time.monotonic() - began < 100:
        time.sleep(0.2)
    detected = time.monotonic() - began
    record_property("seconds_to_detect", round(detected))
    finished = runner.finish(process, name)
    assert f"process {stopped.pid}" in finished.status["reason"]
    assert detected < 60


def test_start_after_a_killed_one_says_so(runner: Runner):
    process = started(runner, "killed_start", "--max_steps", "12", ranks=1)
    pid = process.pid
    runner.kill(process)
    finished = runner.run("killed_start", *PATIENCE, "--max_steps", "12")
    assert f"the start before this one (process {pid} on " in finished.output
    assert finished.status["status"] == "done"
