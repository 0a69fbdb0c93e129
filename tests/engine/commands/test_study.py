"""`rlpheads study`: a real study of tiny runs: trained, not trained again, refused with other settings, stopped by a signal."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_studies import BASE, STUDY, study_file

from rlpheads.engine.cli import main


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "base.yaml").write_text(BASE)
    (folder / "tiny.yaml").write_text(STUDY)
    return folder


@pytest.fixture(scope="module")
def finished_study(study_folder: Path) -> Path:
    words = ["study", str(study_folder / "tiny.yaml"), "--out", str(study_folder / "out"), "--jobs", "2"]
    assert main(words) == 0
    return study_folder / "out"


@pytest.mark.distributed
class TestRun:
    def test_every_run_and_arm_is_reported(self, finished_study):
        found = json.loads((finished_study / "study.json").read_text())
        assert list(found["runs"]) == ["free.seed3", "held.seed3"]
        run = found["runs"]["held.seed3"]
        assert run["measures"]["own_rla"] == last_epoch(finished_study / "held.seed3")["rla_clean"]
        free, held = found["arms"]["free"], found["arms"]["held"]
        for name in ("top1", "ece", "own_rla", "audit_rla", "label_excess", "membership_excess", "own_bits_per_sample"):
            assert held[name]["difference"]["values"] == [held[name]["mean"] - free[name]["mean"]]
            assert held[name]["low"] is None  # one seed has no interval
        for name in ("membership_auc", "noise_auc", "class_probe_gain", "true_class_gain"):
            assert name in held
        assert found["sources"] == {}
        assert found["excesses"]["label_excess"]["of"] == 2
        assert found["excesses"]["label_excess"]["by_chance"] == pytest.approx(0.1)
        assert found["saturated"]["of"] == 4  # two taps in each run
        assert {path.name for path in finished_study.glob("study.*")} == {
            *("study.json", "study.csv", "study.tex", "study.png", "study.svg", "study.pdf")
        }

    def test_what_is_finished_study_is_not_trained_again(self, finished_study, study_folder, capsys):
        """Not even where heads.labels is auto, and its number is in the runs' own settings alone."""
        before = {path: path.stat().st_mtime_ns for path in finished_study.glob("*/status.json")}
        assert main(["study", str(study_folder / "tiny.yaml"), "--out", str(finished_study)]) == 0
        assert {path: path.stat().st_mtime_ns for path in finished_study.glob("*/status.json")} == before
        out = capsys.readouterr().out
        assert "training" not in out
        assert "held" in out

    def test_a_finished_study_run_with_other_settings_is_refused(self, finished_study, study_folder, capsys):
        other = study_folder / "other.yaml"
        other.write_text(STUDY.replace("factor: 1", "factor: 2"))
        assert main(["study", str(other), "--out", str(finished_study)]) == 2
        error = capsys.readouterr().err
        assert "regularizer.factor is 2.0 now and was 1.0" in error
        assert "--out" in error


def last_epoch(folder: Path) -> dict:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "epoch"][-1]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_that_fails_leaves_the_others_alone(tmp_path, capsys):
    """Of three runs one cannot write its folder: the others are trained and reported, progress counts all."""
    path = study_file(
        tmp_path, "config: base.yaml\naudit: null\nsettings: {max_steps: null}\narms: {a: {}, b: {}, c: {}}\n"
    )
    (tmp_path / "out" / "b.seed0").mkdir(parents=True)
    (tmp_path / "out" / ".rlpheads-study").write_text("{}")
    (tmp_path / "out" / "b.seed0" / "thesis.tex").write_text("not a run's")
    assert main(["study", str(path), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "3 of 3 runs finished, 1 failed" in said.out
    assert "1 of 3 runs finished, ETA" in said.out
    assert "failed:" in said.err
    assert "b.seed0.log" in said.err
    assert list(json.loads((tmp_path / "out" / "study.json").read_text())["runs"]) == ["a.seed0", "c.seed0"]


@pytest.mark.wrong("words")
def test_jobs_are_counted_from_one(tmp_path, capsys):
    assert main(["study", str(tmp_path / "any.yaml"), "--jobs", "0"]) == 2
    assert "--jobs: got 0; allowed: a number at least 1" in capsys.readouterr().err


@pytest.mark.distributed
def test_a_study_that_is_stopped_saves_where_it_stands(tmp_path):
    """SIGTERM to the study alone, as a scheduler sends it: the run under way saves where it stands."""
    text = "config: base.yaml\naudit: null\nsettings: {max_steps: null, epochs: 400, log_every: 1}\narms: {only: {}}\n"
    path = study_file(tmp_path, text)
    command = [sys.executable, "-m", "rlpheads.engine.cli", "study", str(path), "--out", str(tmp_path / "out")]
    metrics = tmp_path / "out" / "only.seed0" / "metrics.jsonl"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as study:
        deadline = time.monotonic() + 200
        while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline and study.poll() is None:
            time.sleep(0.1)
        study.send_signal(signal.SIGTERM)
        _, error = study.communicate(timeout=200)
    assert study.returncode == 75, error
    assert "the same command goes on" in error
    assert json.loads((metrics.parent / "status.json").read_text())["status"] == "requeue"
    assert list((metrics.parent / "checkpoints").glob("step=*"))
