"""`rlpheads study`: a real study of tiny runs, started, stopped by nothing, not trained again, and refused where it must be."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlpheads.engine.cli import main
from rlpheads.engine.commands.study_plan import plan_runs, read_study
from rlpheads.engine.commands.study_report import summarize_arm
from rlpheads.engine.config.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[3] / "studies").glob("*.yaml"))

BASE = """
epochs: 1
max_steps: 4
batch_size: 32
device: cpu
data: {workers: 0, image_size: 8, hflip: 0, eval_crop_fraction: 1}
model: {name: vit_tiny_patch16_224, args: {img_size: 8, patch_size: 4, embed_dim: 24, depth: 2, num_heads: 2}}
heads: {labels: 5}
"""
STUDY = """
config: base.yaml
seeds: [3]
settings: {epochs: 1, max_steps: null, heads: {labels: auto, draws: 2, audit_draws: 1}}
arms:
  free: {regularizer: {factor: 0}}
  held: {regularizer: {kind: uniform, factor: 1}}
audit: {draws: 4}
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "base.yaml").write_text(BASE)
    (folder / "tiny.yaml").write_text(STUDY)
    return folder


def study_file(folder: Path, text: str) -> Path:
    (folder / "base.yaml").write_text(BASE)
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


class TestPlan:
    def test_settings_are_layered_and_seeds_go_outermost(self, tmp_path):
        path = study_file(tmp_path, STUDY.replace("[3]", "[3, 4]"))
        runs = plan_runs(read_study(path), tmp_path, world_size=1)
        assert [(run.arm, run.seed) for run in runs] == [("free", 3), ("held", 3), ("free", 4), ("held", 4)]
        config = runs[1].config
        assert (config.batch_size, config.seed, config.max_steps) == (32, 3, None)
        assert (config.heads.draws, config.heads.labels) == (2, "auto")
        assert (config.regularizer.kind, config.regularizer.factor) == ("uniform", 1.0)
        assert runs[1].folder == tmp_path / "held.seed3"

    def test_a_grid_multiplies_the_arms(self, tmp_path):
        text = "config: base.yaml\narms: {a: {heads.draws: 3}}\ngrid: {regularizer.factor: [0, 0.5], epochs: [1, 2]}\n"
        study = read_study(study_file(tmp_path, text))
        names = ["a_factor=0_epochs=1", "a_factor=0_epochs=2", "a_factor=0.5_epochs=1", "a_factor=0.5_epochs=2"]
        assert list(study.arms) == names
        assert study.arms[names[3]] == {"heads": {"draws": 3}, "regularizer": {"factor": 0.5}, "epochs": 2}
        assert study.reference == names[0]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("config: base.yaml\n", "nothing to compare"),
            ("arms: {a: {}}\n", "config: got null; allowed: a configuration file"),
            ("config: base.yaml\narm: {a: {}}\n", "arm: got .*nearest: arms"),
            ("config: base.yaml\narms: {a: 2}\n", "arms.a: got 2; allowed: a mapping"),
            ("config: base.yaml\narms: {a: {}}\ngrid: {epochs: 3}\n", "grid.epochs: got 3; allowed: a list"),
            ("config: base.yaml\narms: {a: {}}\nseeds: [0, 0]\n", "seeds: .*each seed once"),
            ("config: base.yaml\narms: {a: {}}\nseeds: 3\n", "seeds: got 3; allowed: a list of whole numbers"),
            ("config: base.yaml\narms: {a: {}}\nreference: b\n", "reference: got 'b'; allowed: an arm: a"),
            ("config: base.yaml\narms: {a: {}}\naudit: {draws: 2}\n", "at least 4 draws"),
            ("config: base.yaml\narms: {a: {}}\naudit: {drawn: 8}\n", "audit: .*keys among taps, probe"),
        ],
    )
    def test_what_is_no_study_says_why(self, tmp_path, text, message):
        with pytest.raises(ConfigError, match=message):
            read_study(study_file(tmp_path, text))

    def test_an_arm_that_cannot_be_run_is_named_before_anything_is_trained(self, tmp_path, capsys):
        path = study_file(tmp_path, "config: base.yaml\narms: {good: {}, bad: {heads.labels: 1}}\n")
        assert main(["study", str(path), "--out", str(tmp_path / "out")]) == 2
        assert "arm bad" in (error := capsys.readouterr().err)
        assert "heads.labels: got 1" in error
        assert not (tmp_path / "out" / "good.seed0").exists()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_can_be_run(path, tmp_path):
    study = read_study(path)
    runs = plan_runs(study, tmp_path, world_size=1)
    assert len(runs) == len(study.arms) * len(study.seeds)


@pytest.fixture(scope="module")
def finished(written: Path) -> Path:
    assert main(["study", str(written / "tiny.yaml"), "--out", str(written / "out")]) == 0
    return written / "out"


def test_intervals_and_differences_are_across_seeds():
    free = {0: {"own_rla": 0.2}, 1: {"own_rla": 0.3}, 2: {"own_rla": 0.1}}
    held = {0: {"own_rla": 0.1}, 2: {"own_rla": 0.04}}
    found = summarize_arm(held, free, is_reference=False)["own_rla"]
    assert found["mean"] == pytest.approx(0.07)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(12.7062 * 0.03, rel=1e-4)  # t of one degree of freedom
    assert found["difference"]["values"] == pytest.approx([-0.1, -0.06])
    assert "difference" not in summarize_arm(free, free, is_reference=True)["own_rla"]


def test_what_some_runs_lack_is_left_out():
    """A study may hold runs of an older version, which measured less."""
    found = summarize_arm({0: {"top1": 0.9, "ece": 0.1}, 1: {"top1": 0.8}}, {0: {"top1": 0.7}, 1: {"top1": 0.7}}, False)
    assert found.keys() == {"top1"}
    assert found["top1"]["difference"]["mean"] == pytest.approx(0.15)


@pytest.mark.distributed
class TestRun:
    def test_every_run_and_arm_is_reported(self, finished):
        found = json.loads((finished / "study.json").read_text())
        assert list(found["runs"]) == ["free.seed3", "held.seed3"]
        run = found["runs"]["held.seed3"]
        assert run["measures"]["own_rla"] == last_epoch(finished / "held.seed3")["rla_clean"]
        free, held = found["arms"]["free"], found["arms"]["held"]
        for name in ("top1", "ece", "own_rla", "audit_rla", "label_excess", "membership_excess", "own_bits_per_sample"):
            assert held[name]["difference"]["values"] == [held[name]["mean"] - free[name]["mean"]]
            assert held[name]["low"] is None  # one seed has no interval
        assert {path.name for path in finished.glob("study.*")} == {"study.json", "study.png", "study.svg"}

    def test_what_is_finished_is_not_trained_again(self, finished, written, capsys):
        """Not even where heads.labels is auto, and its number is in the runs' own settings alone."""
        before = {path: path.stat().st_mtime_ns for path in finished.glob("*/status.json")}
        assert main(["study", str(written / "tiny.yaml"), "--out", str(finished)]) == 0
        assert {path: path.stat().st_mtime_ns for path in finished.glob("*/status.json")} == before
        out = capsys.readouterr().out
        assert "training" not in out
        assert "held" in out

    def test_a_finished_run_with_other_settings_is_refused(self, finished, written, capsys):
        other = written / "other.yaml"
        other.write_text(STUDY.replace("factor: 1", "factor: 2"))
        assert main(["study", str(other), "--out", str(finished)]) == 2
        error = capsys.readouterr().err
        assert "regularizer.factor is 2.0 now and was 1.0" in error
        assert "--out" in error


def last_epoch(folder: Path) -> dict:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "epoch"][-1]


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
