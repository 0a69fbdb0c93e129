"""`rlpheads audit`: its table, its JSON, and mistakes answered in one line."""

import json
import shutil

import pytest

from rlpheads.engine.cli import main
from rlpheads.engine.runs.opened_run import open_checkpoint
from rlpheads.loaders.contract.errors import LoaderError

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "3"], "no checkpoint of the end of epoch 3; kept are the ends of epochs: 5, 6"),
        (["--taps", "0.atn"], "nearest: 0.attn"),
        (["--probe", "logistics"], "allowed: least_squares, logistic, two_layer; nearest: logistic"),
        (["--draws", "3"], "--draws is 3; intervals across draws need at least 4"),
        (["--level", "95"], "--level is 95.0; it must lie strictly between 0 and 1"),
        (["--hidden", "9"], "--hidden goes with --probe two_layer"),
        (["--probe", "two_layer", "--hidden", "0"], "--hidden is 0; it must be at least 1"),
        (["--root", "elsewhere"], "root must be left out"),
    ],
)
def test_mistakes_are_answered_in_one_line(detached_run, arguments, message, capsys):
    assert main(["audit", str(detached_run), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.wrong("environment")
def test_loader_that_cannot_work_is_one_line(detached_run, capsys, monkeypatch):
    def fails(*_arguments):
        raise LoaderError("/dev/shm is full")

    monkeypatch.setattr("rlpheads.engine.audits.audit_run.audit_run", fails)
    assert main(["audit", str(detached_run)]) == 1
    assert capsys.readouterr().err == "error: /dev/shm is full\n"


def test_an_interrupted_audit_is_one_line(detached_run, capsys, monkeypatch):
    """Of Ctrl-C; what a killed one leaves is in benchmarks/audit_kills.py."""

    def is_interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("rlpheads.engine.audits.audit_run.audit_features", is_interrupted)
    assert main(["audit", str(detached_run)]) == 130
    assert capsys.readouterr().err == "stopped: interrupted; the same command begins again\n"


def test_folders_that_are_no_run(detached_run, tmp_path, capsys):
    assert main(["audit", str(detached_run.with_name("detatched"))]) == 2
    assert f"nearest: {detached_run}" in capsys.readouterr().err
    assert main(["audit", str(detached_run.parent)]) == 2
    assert "the folder holds these runs: detached" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text((detached_run / "config.yaml").read_text())
    assert main(["audit", str(tmp_path)]) == 2
    assert "has no whole checkpoint" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_refused(detached_run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(detached_run, copy)
    (shard, *_) = sorted(copy.glob("checkpoints/*"))[-1].glob("*.distcp")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["audit", str(copy)]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("probe", ["least_squares", "logistic", "two_layer"])
def test_the_command_prints_a_table_of_what_it_writes(detached_run, probe, capsys):
    arguments = ["--taps", "1.attn", "--probe", probe, "--draws", "4", "--epoch", "5"]
    arguments += ["--hidden", "2"] if probe == "two_layer" else []
    assert main(["audit", str(detached_run), *arguments]) == 0
    table = capsys.readouterr().out
    (path,) = (detached_run / "audit").glob(f"*_{probe}_1.attn.json")
    assert f"written: {path}" in table
    written = json.loads(path.read_text())
    assert (written["epoch"], written["num_labels"], written["num_fresh_draws"]) == (5, 5, 4)
    (tap,) = written["taps"]
    assert tap["tap"] == "1.attn"
    found = tap["found"]
    for accuracies in (found["own_M"], found["fresh_F"], found["members_F"], found["heldout_F"]):
        assert f"{100 * sum(accuracies) / len(accuracies):.2f}%" in table
    for excess in (found["label_excess"], found["membership_excess"]):
        assert f"{100 * excess['value']:+.2f} ± {50 * (excess['high'] - excess['low']):.2f}" in table


def test_an_audit_as_json_is_the_file_and_the_same_again(detached_run, capsys):
    """Of other taps than the run's own it is a file of its own."""
    printed = []
    for flags in ((), ("--taps", "0,1.attn"), ("--taps", "[0, 1.attn]"), ("--taps", "0,1.attn")):
        assert main(["audit", str(detached_run), *flags, "--json"]) == 0
        printed.append(capsys.readouterr().out)
    name = f"{open_checkpoint(detached_run).saved.path.name}_least_squares"
    own, other = ((detached_run / "audit" / f"{name}{taps}.json").read_text() for taps in ("", "_0,1.attn"))
    assert own == printed[0]
    assert other == printed[1] == printed[3]
    printed = printed[1:]
    assert [tap["tap"] for tap in json.loads(printed[0])["taps"]] == ["0", "1.attn"]


@pytest.mark.wrong("files")
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_an_audit_that_cannot_be_written_is_printed(detached_run, tmp_path, capsys, flags):
    copy = shutil.copytree(detached_run, tmp_path / "copy", ignore=shutil.ignore_patterns("audit"))
    (copy / "audit").touch()
    assert main(["audit", str(copy), "--taps", "1", "--draws", "4", *flags]) == 1
    printed = capsys.readouterr()
    assert "fresh" in printed.out
    assert "written" not in printed.out
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_a_probe_that_fits_everything_says_so(detached_run, capsys):
    arguments = ["audit", str(detached_run), "--taps", "1", "--draws", "4", "--probe", "two_layer"]
    assert main([*arguments, "--hidden", "64"]) == 0
    assert "it can show no excess" in capsys.readouterr().out
    assert main(arguments[:-2]) == 0
    assert "it can show no excess" not in capsys.readouterr().out
