"""Ranks that stand still, and launchers that die: found in time, named, and ended; nothing runs on, nothing waits."""

import json
import re
import time
from pathlib import Path

import psutil
import pytest
from real_runs import ROOT, Runner, rank_processes

pytestmark = [pytest.mark.distributed, pytest.mark.long, pytest.mark.timeout(150)]
PATIENCE = ["--epochs", "200", "--distributed.timeout", "8"]


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


def stuck(runner: Runner, monkeypatch, name, *flags, ranks=2, **where):
    """Run to the end of a run one of whose ranks, 1 where there are two, does not leave a phase."""
    monkeypatch.setenv("STUCK", json.dumps({"rank": ranks - 1, "time": 1, "how": "wait"} | where))
    program = str(ROOT / "tests" / "helpers" / "stuck_ranks.py")
    words = [program if Path(word).name == "train.py" else word for word in runner.command(name, *flags, ranks=ranks)]
    return runner.finish(runner.start_command(words), name)


def test_rank_that_hangs_alone_is_named_among_those_that_wait(runner: Runner, monkeypatch):
    finished = stuck(runner, monkeypatch, "stuck", *PATIENCE, phase="training step", time=6)
    assert finished.code == 1, finished.output
    assert "hang: no progress of rank 1 (" in finished.status["reason"]
    assert "training step, step 5" in finished.status["reason"]
    assert "rank 0" not in finished.status["reason"]
    assert "in wait" in (finished.folder / "hang.rank0001.txt").read_text()


@pytest.mark.parametrize(
    ("phase", "how", "ranks"),
    [
        ("training step", "circle", 2),
        pytest.param("building", "wait", 2, marks=pytest.mark.slow),
        pytest.param("waiting for images", "long circle", 1, marks=pytest.mark.slow),
        pytest.param("held-out evaluation, first batch", "wait", 1, marks=pytest.mark.slow),
        pytest.param("clean evaluation, first batch", "circle", 2, marks=pytest.mark.slow),
        pytest.param("refit on fresh labels", "wait", 2, marks=pytest.mark.slow),
        pytest.param("checkpoint", "long circle", 2, marks=pytest.mark.slow),
        pytest.param("last figures", "circle", 1, marks=pytest.mark.slow),
    ],
)
def test_rank_that_never_leaves_a_phase_is_found_the_first_time(runner: Runner, monkeypatch, phase, how, ranks):
    """Nobody knows how long it may take: that no rank works, or one in a circle alone, is what tells."""
    name = f"first_{phase.replace(' ', '_')}"
    finished = stuck(runner, monkeypatch, name, "--distributed.timeout", "8", ranks=ranks, phase=phase, how=how)
    assert finished.code == 1, finished.output
    assert f"hang: no progress of rank {ranks - 1} (" in finished.status["reason"]
    assert f": {phase}, step " in finished.status["reason"]
    assert "stuck_ranks.py" in finished.status["reason"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["wait", "long circle"])
def test_defaults_find_it_within_a_minute_the_first_time(runner: Runner, monkeypatch, how, record_property):
    name = f"defaults_first_{how.replace(' ', '_')}"
    finished = stuck(runner, monkeypatch, name, phase="training step", how=how)
    seconds = int(re.search(r"since (\d+) s", finished.status["reason"])[1])
    record_property("seconds_to_detect", seconds)
    assert "hang: no progress of rank 1 (" in finished.status["reason"]
    assert seconds < 60


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_long_compilation_is_no_hang(runner: Runner, monkeypatch):
    """The first step takes many times the patience that a rank has which does nothing."""
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    flags = ["--runtime.compile", "true", "--distributed.timeout", "10", "--max_steps", "2"]
    process = runner.start_command(runner.command("compiles", *flags, ranks=1))
    finished = runner.finish(process, "compiles")
    assert finished.code == 0, finished.output


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
