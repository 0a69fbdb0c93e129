"""`rlpheads train` on the command line: the settings, the launcher's options among them, and answers without torch."""

import argparse
import os
import subprocess
import sys

import pytest

from rlpheads.engine import cli, train
from rlpheads.engine.commands.train import add_arguments
from rlpheads.engine.config.launcher_options import LAUNCHER_OPTIONS
from rlpheads.engine.distributed import cores

SETTINGS = ["--config", "configs/digits_vit.yaml", "--heads.taps", "[0, -1]", "--optim.lr=1e-3", "--verbose"]


@pytest.fixture
def passed(monkeypatch):
    """The settings that the training program gets, of each call."""
    calls: list[list[str]] = []
    monkeypatch.setattr(train, "main", lambda argv: calls.append(list(argv)) or 75)
    return calls


@pytest.mark.parametrize("place", range(len(SETTINGS) + 1))
def test_options_of_the_launcher_stand_anywhere_among_the_settings(passed, place):
    argv = [*SETTINGS]
    if place not in (1, 3):  # between a key and its value
        argv[place:place] = ["--nproc-per-node", "1", "--standalone"]
    assert cli.main(["train", *argv]) == 75
    assert passed == [SETTINGS]


@pytest.mark.long
@pytest.mark.wrong("launcher")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nproc_per_node", "0"], "--nproc-per-node: got '0'; allowed: a whole number from 1, or gpu"),
        (["--nproc-per-node=2", "--optim.lrr", "1"], "--optim.lrr: no such key; nearest: --optim.lr"),
        (["--nproc-per-node=2", "--config", "nowhere.yaml"], "--config nowhere.yaml: "),
        (["--nnodes", "2"], "--nnodes: got 2, and not where the nodes meet"),
        (
            ["--nproc-per-nod", "2"],
            "--nproc-per-nod: no such key; nearest: --nproc-per-node of rlpheads train, or of torchrun",
        ),
        (["--node_rang=1"], "--node_rang: no such key; nearest: --node-rank of rlpheads train"),
        (["--rdzv-endpoints=a:1"], "nearest: --rdzv-endpoint of rlpheads train"),
        (
            ["--epochs", "99999999999999999999"],
            "epochs: got 99999999999999999999; allowed: a number at least 1 and at most",
        ),
        (
            ["--nproc-per-node=2", "--optim.lr", "1e300"],
            "optim.lr: got 1e+300; allowed: a number above 0 and at most 1000000000",
        ),
        (["digits.yaml"], "digits.yaml: not a flag; allowed: --KEY VALUE (meant: --config digits.yaml)"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_mistake_is_answered_without_torch(argv, message):
    code = f"""
import sys
from rlpheads.engine.cli import main
code = main({["train", *argv]})
assert not {{"torch", "timm", "numpy"}} & sys.modules.keys()
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert message.removeprefix("--config ") in line


def test_the_parser_takes_what_is_known_as_options_of_the_launcher():
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    taken = {option for action in parser._actions for option in action.option_strings if "_" not in option}
    assert taken == {"-h", "--help", *(f"--{name}" for name in LAUNCHER_OPTIONS)}


def test_help_tells_of_ranks_and_of_every_key(capsys):
    assert cli.main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--nproc-per-node N" in said
    assert "--nproc_per_node" not in said
    assert "--optim.lr" in said


@pytest.mark.parametrize(("given", "expected"), [(None, "3"), ("7", "7")])
def test_one_rank_computes_with_the_cores_that_the_control_group_leaves(monkeypatch, passed, given, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(64)))
    monkeypatch.setattr(cores, "cpu_quota", lambda: 3.0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    cli.main(["train"])
    assert os.environ["OMP_NUM_THREADS"] == expected
