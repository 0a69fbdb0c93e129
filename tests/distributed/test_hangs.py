"""Ranks that stand still, and launchers that die: found in time, named, and ended; nothing runs on, nothing waits."""

import re
import time
from functools import partial

import psutil
import pytest
from real_runs import Runner, rank_processes
from stuck_ranks import stick

from rlpheads.engine.config.run import DistributedConfig
from rlpheads.engine.distributed.progress import Patience

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
    assert (
        "engine/training/loop.py" in (finished.folder / f"hang.rank{1 - victim:04d}.txt").read_text()
    )  # where it waits
    assert "gloo:" in (finished.folder / f"hang.rank{1 - victim:04d}.json").read_text()
    assert not rank.is_running()


def stuck(runner: Runner, name, *flags, phase, how="wait", times=1, ranks=2):
    """Run to the end of a run one of whose ranks, 1 where there are two, does not leave a phase."""
    prepare = partial(stick, ranks - 1, phase, times, how)
    return runner.join(runner.fork(name, *flags, ranks=ranks, prepare=prepare), name)


def test_rank_that_hangs_alone_is_named_among_those_that_wait(runner: Runner):
    finished = stuck(runner, "stuck", *PATIENCE, phase="training step", times=6)
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
def test_rank_that_never_leaves_a_phase_is_found_the_first_time(runner: Runner, phase, how, ranks):
    """Nobody knows how long it may take: that no rank works, or one in a circle alone, is what tells."""
    name = f"first_{phase.replace(' ', '_')}"
    finished = stuck(runner, name, "--distributed.timeout", "8", ranks=ranks, phase=phase, how=how)
    assert finished.code == 1, finished.output
    assert f"hang: no progress of rank {ranks - 1} (" in finished.status["reason"]
    assert ranks == 1 or "rank 0" not in finished.status["reason"]
    assert f": {phase}, step " in finished.status["reason"]
    assert "stuck_ranks.py" in finished.status["reason"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["wait", "long circle"])
def test_defaults_do_not_wait_for_a_first_time_in_which_nothing_is_done(runner: Runner, how):
    """By the verdict's own figure: long before the patience with a first time, which is for those who work, was over."""
    name = f"defaults_first_{how.replace(' ', '_')}"
    finished = stuck(runner, name, phase="training step", how=how)
    assert "hang: no progress of rank 1 (" in finished.status["reason"]
    seconds = int(re.search(r"since (\d+) s", finished.status["reason"])[1])
    assert seconds < DistributedConfig().start_timeout / 4


def test_patience_of_the_defaults_is_less_than_a_minute():
    """With steps of up to nine seconds; what watches looks once in a few seconds."""
    settings = DistributedConfig()
    patience = Patience(settings.timeout, settings.start_timeout)
    assert patience.limit_s(9.0) == patience.limit_s(0.01) == patience.silence_s == 45


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_long_compilation_is_no_hang(runner: Runner, monkeypatch):
    """The first step takes many times the patience that a rank has which does nothing."""
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    flags = ["--runtime.compile", "true", "--distributed.timeout", "10", "--max_steps", "2"]
    finished = runner.finish(runner.start("compiles", *flags), "compiles", limit_s=540)
    assert finished.code == 0, finished.output


def test_stopped_loader_worker_is_named(runner: Runner):
    forked = runner.fork("stopped_worker", *PATIENCE, "--data.workers", "1")
    runner.wait_for_step("stopped_worker", 5, forked)
    (worker,) = psutil.Process(forked.ranks()[0]).children()
    worker.suspend()
    finished = runner.join(forked, "stopped_worker")
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
@pytest.mark.parametrize("launcher", ["torchrun", "rlpheads train"])
def test_ranks_of_a_launcher_that_dies_before_they_have_met_end(runner: Runner, launcher):
    """They have nothing to save, and would wait for its store for as long as ranks may take to come."""
    make = runner.train_command if launcher == "rlpheads train" else runner.command
    process = runner.start_command(make(f"early_orphans_of_{launcher.split()[0]}", ranks=2))
    while len(rank_processes(process)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    ranks = rank_processes(process).values()
    process.kill()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    runner.kill(process)
    for rank in alive:
        rank.kill()
    assert not alive


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "worker"])
def test_defaults_find_a_process_that_was_stopped(runner: Runner, victim):
    """The run ends by itself, and its last step is not the last one of its epochs: those would take many minutes."""
    name, epochs = f"defaults_{victim.replace(' ', '_')}", 2000
    words = runner.train_command(name, "--epochs", str(epochs), "--data.workers", "1", ranks=2)
    process = runner.start_command(words)
    runner.wait_for_step(name, 5, process)
    ranks = rank_processes(process)
    stopped = ranks[0].children()[0] if victim == "worker" else ranks[int(victim[-1])]
    stopped.suspend()
    finished = runner.finish(process, name)
    assert finished.status["status"] == "failed"
    assert f"process {stopped.pid}" in finished.status["reason"]
    assert not any(row["epoch"] == epochs - 1 for row in finished.rows("epoch"))


def test_start_after_a_killed_one_says_so(runner: Runner):
    forked = runner.fork("killed_start", *PATIENCE, "--max_steps", "12")
    runner.wait_for_step("killed_start", 5, forked)
    (pid,) = forked.ranks().values()
    forked.kill()
    runner.join(forked, "killed_start")
    finished = runner.run("killed_start", *PATIENCE, "--max_steps", "12")
    assert f"the start before this one (process {pid} on " in finished.output
    assert finished.status["status"] == "done"
