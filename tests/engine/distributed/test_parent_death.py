"""A rank ends with the launcher that started it, also with one that is dead before the rank has begun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

LAUNCHER = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", *sys.argv[1:]]).pid, flush=True)
time.sleep(60)
"""
RANK = """
import pathlib, sys, time
pathlib.Path(sys.argv[1], "begun").touch()
while not pathlib.Path(sys.argv[1], "go").exists():
    time.sleep(0.01)
from rlpheads.engine.distributed.parent_death import stop_with_launcher
stop_with_launcher()
pathlib.Path(sys.argv[1], "bound").touch()
time.sleep(60)
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path.name
        time.sleep(0.01)


def rank_of_a_killed_launcher(folder: Path, *, dies_first: bool, variables: dict[str, str]) -> psutil.Process:
    """A rank whose launcher was killed before, or after, the rank has bound itself to it."""
    command = [sys.executable, "-c", LAUNCHER, RANK, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables}) as launcher:
        rank = psutil.Process(int(launcher.stdout.readline()))
        wait_for(folder / "begun")
        if dies_first:
            launcher.kill()
            launcher.wait()
        (folder / "go").touch()
        if not dies_first:
            wait_for(folder / "bound")
            launcher.kill()
    return rank


@pytest.mark.long
@pytest.mark.parametrize("dies_first", [True, False])
def test_a_rank_ends_with_its_launcher(tmp_path, dies_first):
    rank = rank_of_a_killed_launcher(tmp_path, dies_first=dies_first, variables={"TORCHELASTIC_RUN_ID": "a job"})
    psutil.wait_procs([rank], timeout=20)
    assert not rank.is_running()
    assert (tmp_path / "bound").exists() is not dies_first


@pytest.mark.long
def test_a_process_without_a_launcher_outlives_its_parent(tmp_path):
    """As a run does whose terminal is closed under nohup."""
    rank = rank_of_a_killed_launcher(tmp_path, dies_first=True, variables={"TORCHELASTIC_RUN_ID": ""})
    wait_for(tmp_path / "bound")
    assert rank.is_running()
    rank.send_signal(signal.SIGKILL)
