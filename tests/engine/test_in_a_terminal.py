"""`rlpheads train` in a real terminal: what is seen after a run, a mistake and Ctrl-C, at 80 and at 40 columns."""

import json
import os
import sys

import pytest
from pseudo_terminal import Ended, run_in_terminal
from wrong_settings import DIGITS

TINY = [
    "--model.args.depth",
    "2",
    "--model.args.embed_dim",
    "24",
    "--data.subset.fraction",
    "0.1",
    "--data.workers",
    "0",
]
TINY += ["--batch_size", "32", "--log.tensorboard", "false", "--log_every", "1"]
MISTAKES = [
    (["--optim.lrr", "1"], "error: --optim.lrr: no such key; nearest: --optim.lr"),
    (["--epochs", "99999999999999999999"], "error: epochs: got 99999999999999999999; allowed: a number at least 1 and"),
    (["--nproc-per-nod", "2"], "error: --nproc-per-nod: no such key; nearest: --nproc-per-node of rlpheads train"),
]
"""Flags, and the beginning of the answer on one long line."""


def train(folder, *flags: str, **options) -> Ended:
    command = [sys.executable, "-m", "rlpheads.engine.cli", "train", *DIGITS, *TINY, "--run.dir", str(folder)]
    return run_in_terminal([*command, *flags], **options)


@pytest.mark.long
@pytest.mark.parametrize("width", [pytest.param(80, marks=pytest.mark.slow), 40])
def test_no_word_is_broken_and_no_control_sequence_is_seen(tmp_path, monkeypatch, width):
    monkeypatch.chdir(tmp_path)  # a short name of the folder, which is the only word that could be too long
    ended = train("r", "--run.name", "a", "--epochs", "1", width=width)
    assert ended.code == 0, ended.screen.text
    assert ended.screen.unknown == []
    assert ended.screen.num_wraps == 0, ended.screen.text
    assert "…" not in ended.screen.text
    assert "\ndone: all 1 epochs trained;" in ended.screen.text


@pytest.mark.wrong("launcher")
@pytest.mark.parametrize(("flags", "answer"), MISTAKES, ids=lambda case: str(case)[:30])
def test_mistake_is_one_line_at_once(tmp_path, monkeypatch, flags, answer):
    """0.2 s on a quiet machine, as nothing large is imported."""
    folder, modules = tmp_path / "runs", tmp_path / "modules"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "sitecustomize.py").write_text(
        f"import atexit, sys\natexit.register(lambda: open({str(modules)!r}, 'w').write(' '.join(sys.modules)))\n"
    )
    ended = train(folder, *flags, width=400)
    assert ended.code == 2
    (line,) = ended.screen.text.splitlines()
    assert line.startswith(answer)
    assert not {"torch", "timm", "numpy"} & set(modules.read_text().split())
    assert not folder.exists()


@pytest.mark.wrong("launcher")
@pytest.mark.distributed
@pytest.mark.long
@pytest.mark.parametrize("ranks", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_missing_folder_is_one_line(tmp_path, ranks):
    flags = ["--data.dataset", "imagefolder", "--data.root", "nowhere", "--nproc-per-node", ranks]
    ended = train(tmp_path, *flags, width=400)
    assert ended.code == 2
    (line,) = ended.screen.text.splitlines()
    assert line.startswith("error: data.root: got 'nowhere'; allowed: a folder that exists")


@pytest.mark.wrong("launcher")
@pytest.mark.distributed
@pytest.mark.long
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_interrupt_adds_three_lines_at_most(tmp_path, ranks):
    """Behind what the run had printed: that it was stopped, how it goes on, and no traceback."""
    flags = ["--nproc-per-node", ranks, "--run.name", "a", "--epochs", "1000", "--eval.every", "1000"]
    flags += ["--eval.clean_every", "0", "--heads.taps", "none", "--checkpoint.every", "1000"]
    ended = train(tmp_path, *flags, width=200, interrupt_when=lambda written: "epoch 3" in written)
    assert ended.code == 75, ended.screen.text
    last = ended.screen.text.rpartition("img/s")[2].partition("\n")[2].strip().splitlines()
    assert [line.partition(":")[0] for line in last if ":" in line] == ["requeue", "next"]
    assert len(last) <= 3
    assert json.loads((tmp_path / "a" / "status.json").read_text())["status"] == "requeue"
