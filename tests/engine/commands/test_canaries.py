"""`rlpheads canaries`: a tiny run with everything planted, scored from its own folder, and its errors."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlpheads.engine.cli import main
from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.report.canaries_report import CanaryReport, collect_report, print_report
from rlpheads.engine.report.console import TextConsole
from rlpheads.engine.training.job import run
from rlpheads.memorization.measures.canaries import CanaryAUC
from rlpheads.memorization.measures.rank_correlation import Correlation
from rlpheads.memorization.records.canary_file import read_canaries
from rlpheads.memorization.records.ledger_file import read_ledger

pytestmark = pytest.mark.long

KINDS = {"mislabelled": 20, "near_duplicate": 20, "noisy": 144, "repeated": 60}  # 20 images take 2 and 4 places in turn


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three epochs; the clean pass is due after the last alone."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "plain.yaml").write_text("seed: 0\n")  # no file at all would mean CIFAR-100
    flags = ["--config", str(folder / "plain.yaml"), "--run.dir", str(folder), "--run.name", "planted"]
    flags += ["--epochs", "3", "--batch_size", "32", "--device", "cpu", "--optim.lr", "0.003"]
    flags += ["--data.workers", "0", "--data.image_size", "8", "--data.hflip", "0", "--data.eval_crop_fraction", "1"]
    flags += ["--data.crop_scale", "[0.85, 1]", "--model.args.img_size", "8", "--model.args.patch_size", "4"]
    flags += ["--model.args.embed_dim", "24", "--model.args.depth", "2", "--model.args.num_heads", "2"]
    flags += ["--model.args.class_token", "false", "--model.args.global_pool", "avg"]
    flags += ["--heads.labels", "5", "--heads.draws", "2", "--eval.clean_every", "0", "--data.label_noise", "0.1"]
    flags += ["--data.canaries.mislabelled", "20", "--data.canaries.repeated", "20"]
    flags += ["--data.canaries.repeats", "[2, 4]", "--data.canaries.near_duplicates", "10"]
    config = parse_config(flags)
    assert run(config) == 0
    return Path(config.run.dir) / config.run.name


def printed_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["canaries", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_truth_is_beside_the_run(finished: Path) -> None:
    canaries = read_canaries(finished / "canaries.parquet")
    ledger = read_ledger(finished / "ledger" / "epoch=0002" / "clean.parquet")
    assert canaries.fingerprint == ledger.metadata.fingerprint
    assert canaries.kinds == KINDS
    assert len(ledger.index) == 1437 + 40 + 10  # 10 images once more and 10 three times more; 10 darker copies
    wrong = ledger.target[canaries.index] != canaries.true_class
    assert (wrong == np.isin(canaries.kind, ["mislabelled", "noisy"])).all()


def test_every_kind_is_scored_by_every_measure(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = printed_json(capsys, str(finished))
    assert report["kinds"] == KINDS
    assert report["epochs"] == [0, 1, 2]
    assert report["remarks"] == []
    named = ["first-learned epoch (3 in a row)", "learned for good", "first hit", "forgetting events"]
    named += ["class loss", "class confidence", "class variability", "class loss IQR"]
    heads = [f"label {name}, block {tap}" for tap in (0, 1) for name in ("score", "bits", "margin")]
    assert list(report["auc"]) == named + heads == list(report["spearman"])
    for kinds in report["auc"].values():
        assert set(kinds) == set(KINDS)
        assert all(0 <= found["low"] <= found["auc"] <= found["high"] <= 1 for found in kinds.values())


def test_wrong_classes_have_the_higher_loss(finished: Path) -> None:
    """Even three epochs tell them apart: the network follows the majority."""
    losses = collect_report(finished).auc["class loss"]
    assert losses["noisy"].low > 0.8
    assert losses["mislabelled"].low > 0.6


def test_the_table_names_kinds_and_measures(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["canaries", str(finished)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "canaries against ordinary samples: 3 running ledger(s), the last of epoch 2"
    for kind, count in KINDS.items():
        assert f"{kind} ({count})" in lines[1]
    assert sum(line.startswith(("class ", "label ", "first", "learned ", "forgetting ")) for line in lines) == 14
    assert "read it off first-learned epoch (3 in a row). First hit takes the lucky guesses" in " ".join(lines)


def test_one_ledger_gives_no_dynamics_and_says_what_would(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = printed_json(capsys, str(finished), "--phase", "clean")
    assert "class loss" in report["auc"]
    assert not [name for name in report["auc"] if name.startswith("first")]
    (remark,) = report["remarks"]
    assert remark.startswith(
        "not measured, for want of a second clean ledger: first-learned epoch (3 in a row), learned for good, first hit, "
    )
    assert remark.endswith("run with --ledger.every 1 --eval.clean_every 1")


def test_missing_epochs_are_a_remark(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    shutil.rmtree(folder / "ledger" / "epoch=0001")
    (remark,) = collect_report(folder).remarks
    assert remark == "2 ledgers of 3 epochs: what happened in between is not seen; --ledger.every 1"


def test_a_run_without_canaries_ledgers_or_its_own_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(folder: Path) -> str:
        assert main(["canaries", str(folder)]) == 2
        return capsys.readouterr().err

    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    truth = folder / "canaries.parquet"
    whole = truth.read_bytes()
    truth.unlink()
    assert "train with --data.canaries.mislabelled 30 or --data.label_noise 0.2" in complaint(folder)
    truth.write_bytes(whole[: len(whole) // 2])
    assert "no readable Parquet file" in complaint(folder)
    truth.write_bytes(whole)
    shutil.rmtree(folder / "ledger")
    assert "has no running ledger yet" in complaint(folder)


@pytest.mark.wrong("words")
@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_figure_is_cut_off_on_a_narrow_terminal(width: int) -> None:
    found, kinds = CanaryAUC(0.5, 0.4, 0.6), {"mislabelled": 30, "repeated": 28, "near-duplicate": 30}
    auc = {"mean class loss": dict.fromkeys(kinds, found)}
    out = io.StringIO()
    console = TextConsole(file=out, width=width)
    print_report(
        CanaryReport("running", (0, 1), kinds, auc, {"mean class loss": Correlation(0.5, 0.1, 0.8, 0.25)}, ()), console
    )
    assert "…" not in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= width
    for figure in ("0.500", "[0.40,", "0.60]"):
        assert out.getvalue().count(figure) == 3
