"""Processes of `engine/train.py` and of the commands: where output goes, and that none of it is vital."""

import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image
from real_runs import ROOT, Runner

LOCALE_C = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
SCRIPT = [sys.executable, "engine/train.py"]
COMMAND = [sys.executable, "-m", "rlpheads.engine.cli"]


@pytest.fixture
def unread():
    """The end of a pipe whose reader has gone, as behind `| head` or a killed `tee`."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def train(folder, name, program, **streams):
    """Train in a locale of ASCII; return the process and the run's status."""
    flags = ("--epochs", "1", "--regularizer.factor", "0.1", "--log.tensorboard", "false")
    environment = os.environ | LOCALE_C | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    command = [*program, *Runner(folder).command(name, *flags)[2:]]
    ended = subprocess.run(command, cwd=ROOT, env=environment, timeout=240, check=False, **streams)
    return ended, json.loads((folder / name / "status.json").read_text())


@pytest.mark.long
@pytest.mark.wrong("output")
def test_a_terminal_without_the_characters_gets_others(tmp_path):
    folder = tmp_path / "[old]" / "["
    folder.mkdir(parents=True)
    ended, status = train(folder, "red] run", SCRIPT, capture_output=True)
    assert (ended.returncode, status["status"]) == (0, "done"), ended.stderr
    printed = ended.stdout.decode("ascii")
    assert "epoch 0 (of 0-0)" in printed
    assert "lambda 0.1" in printed
    assert f"rlpheads audit '{folder}/red] run'" in printed


@pytest.mark.long
@pytest.mark.wrong("output")
def test_a_run_that_nobody_reads_is_trained_to_its_end(tmp_path, unread):
    ended, status = train(tmp_path, "[b] run", [*COMMAND, "train"], stdout=unread, stderr=unread)
    assert (ended.returncode, status["status"]) == (0, "done")


@pytest.mark.long
@pytest.mark.wrong("output")
@pytest.mark.parametrize("argv", [["--help"], ["verify", "--help"], ["verify", "--workers", "1", "--data.root"]])
def test_a_command_that_nobody_reads_ends_as_by_sigpipe(argv, tmp_path, unread):
    if argv[-1] == "--data.root":
        for folder in (tmp_path / split / name for split in ("train", "val") for name in ("cat", "dog")):
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "0.png")
        argv = [*argv, str(tmp_path)]
    ended = subprocess.run([*COMMAND, *argv], stdout=unread, stderr=subprocess.PIPE, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.long
@pytest.mark.wrong("output")
@pytest.mark.parametrize("name", ["\x1b[31mred", "bell\a", "two\nlines"])
def test_an_error_is_one_line_whatever_is_in_it(name, tmp_path):
    for command in (
        [*COMMAND, "convert", "--out", "store", name],
        [*SCRIPT, f"--{name}", "1"],
    ):
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, text=True, check=False)
        assert ended.returncode == 2
        *_, last = ended.stderr.splitlines()
        assert "error: " in last
        assert name.encode("unicode_escape").decode() in last
