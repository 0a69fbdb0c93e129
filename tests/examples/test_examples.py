"""Every example runs as a user runs it, and what it prints is so."""

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest

from rlpheads.memorization.records.ledger_file import read_ledger

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example with arguments; return what it prints and its variables."""

    def run_example(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        variables = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out, variables

    return run_example


def numbers(text):
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d+", text)]


def test_the_plain_loop_is_short_and_imports_little():
    text = (EXAMPLES / "plain_loop.py").read_text()
    ours = [line for line in text.splitlines() if re.match(r"(from|import) rlpheads", line)]
    assert len(text.splitlines()) <= 60
    assert len(ours) <= 3


def test_every_example_has_a_test():
    tree = ast.parse(Path(__file__).read_text())
    called = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run"
    }
    assert {path.stem for path in EXAMPLES.glob("*.py")} == called


@pytest.mark.long
def test_plain_loop(run, tmp_path):
    printed, variables = run("plain_loop", tmp_path)
    table = read_ledger(tmp_path / "ledger" / "epoch=0009" / "running.parquet")
    assert table.seen.all()
    assert numbers(printed)[2:] == pytest.approx(table.hit.mean((1, 2)).tolist(), abs=6e-4)
    assert variables["ledger"].class_accuracy > 0.95
    assert table.hit[0].mean() > 0.12  # more than chance, 0.1 ± 0.007, gives


@pytest.mark.long
def test_torchvision_model(run):
    """The regulariser keeps its own heads below those that it does not see, on average over the taps."""
    printed, _ = run("torchvision_model", 50)
    last = printed.strip().splitlines()[-3:]
    own, audit = zip(*(numbers(line)[:2] for line in last), strict=True)
    assert sum(own) < sum(audit)


@pytest.mark.long
def test_audit_checkpoint(run, tmp_path):
    printed, variables = run("audit_checkpoint")
    assert len(printed.strip().splitlines()) == 3
    for line in printed.strip().splitlines()[1:]:
        rla, excess, low, high = numbers(line.split(":", 1)[1])
        assert 0.1 < rla < 1
        assert low <= excess <= high
    again, _ = run("audit_checkpoint", variables["path"])
    assert again == printed


@pytest.mark.integrations
@pytest.mark.filterwarnings("ignore")
def test_lightning_module(run, tmp_path):
    pytest.importorskip("lightning.pytorch", reason="Lightning is an extra: make test-integrations installs it")
    printed, _ = run("lightning_module", tmp_path)
    assert {"rla/1", "rla/3", "heldout_rla/1", "heldout_rla/3"} <= set(printed.split())
    assert numbers(printed)[0] > 0.8
    assert len(list(tmp_path.glob("ledger/*/running.parquet"))) == 5


@pytest.mark.integrations
def test_cleanlab_scores(run, tmp_path):
    pytest.importorskip("cleanlab", reason="cleanlab is an extra: make test-integrations installs it")
    printed, variables = run("cleanlab_scores", tmp_path)
    assert variables["found"] / len(variables["wrong"]) > 0.7
    assert f"{variables['found']} are among" in printed
