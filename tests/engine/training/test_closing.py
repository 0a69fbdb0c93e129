"""A run's last lines: what was learned, where the figures are, what to run next."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import small_config

from rlpheads.engine.config.learning import HeadsConfig
from rlpheads.engine.config.run import EvalConfig, LogConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.report.findings import FRESH_REFIT, Findings, TapFinding
from rlpheads.engine.runs.folder import MEMORY_FILE
from rlpheads.engine.runs.weights_files import read_weights
from rlpheads.engine.training import job
from rlpheads.engine.training.closing import closing_lines
from rlpheads.engine.training.outcome import Outcome

TAPS = (
    TapFinding(0, running=0.1, clean=0.2, audit=None, baseline=0.15, heldout=0.1),
    TapFinding("3.attn", running=0.3, clean=0.4, audit=None, baseline=0.25, heldout=0.1),
)
FOUND = Findings(
    top1=0.5, chance=0.1, taps=TAPS, heldout_bounds=(0.07, 0.13), strayed=(), draw_bounds=(0.05, 0.15), num_train=10_000
)


AUDITED = Config(heads=HeadsConfig(audit_draws=1))


def lines(found: Findings | None, folder: Path, config: Config | None = None, status="done") -> list[str]:
    kept = list(closing_lines(Outcome(status, "all 2 epochs trained", found), config or AUDITED, folder))
    assert all(line.command in line.text for line in kept)
    return [line.text for line in kept]


def test_finished_run_names_its_findings_figures_and_next_commands(tmp_path):
    for name in ("canaries.parquet", "summary.csv"):
        (tmp_path / name).touch()
    assert lines(FOUND, tmp_path) == [
        f"done: all 2 epochs trained; everything is in {tmp_path}",
        "learned: held-out top-1 50.00%; random-label accuracy at most 40.00%, at tap 3.attn (head-only baseline: "
        "25.00%; chance: 10.00%)",
        "means: at tap 3.attn heads know 15.00 ± 1.10 points more of their labels than a head alone reaches: "
        "memory beyond the head",
        f"figures: {tmp_path}/figures/rla_by_depth.png and rla_by_epoch.png; by epoch {tmp_path}/summary.csv; curves: "
        f"tensorboard --logdir {tmp_path}/tensorboard",
        f"next: rlpheads audit {tmp_path} says what the frozen features hold, with intervals",
        f"next: rlpheads canaries {tmp_path} says which measure finds the planted images",
    ]


@pytest.mark.wrong("output")
@pytest.mark.parametrize("name", ["my run", "it's", "[old]", "$HOME", "two\nlines"])
def test_printed_commands_can_be_pasted(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "canaries.parquet").touch()
    *_, audit, canaries = lines(FOUND, folder)
    for line, command in ((audit, "audit"), (canaries, "canaries")):
        words = line.removeprefix("next: ").partition(" says")[0]
        printed = subprocess.run(["bash", "-c", f"printf '%s|' {words}"], capture_output=True, text=True, check=True)
        assert printed.stdout == f"rlpheads|{command}|{folder}|"


def test_accuracies_below_the_line_are_said_to_show_no_memory(tmp_path):
    taps = tuple(replace(tap, clean=tap.baseline + 0.005, audit=None) for tap in TAPS)
    said = lines(replace(FOUND, taps=taps, line=FRESH_REFIT), tmp_path)
    assert "(refit, fresh labels: 25.00%; chance: 10.00%)" in said[1]
    assert said[2].startswith("means: no tap beyond what heads refitted to fresh labels reach")


def test_calibration_is_told_where_it_was_measured(tmp_path):
    learned = lines(replace(FOUND, ece=0.0123), tmp_path)[1]
    assert learned.startswith("learned: held-out top-1 50.00% (calibration error 1.23%); ")


def test_audit_heads_are_believed_before_those_that_a_regulariser_fools(tmp_path):
    taps = tuple(replace(tap, clean=0.1, audit=0.35) for tap in TAPS)
    assert "at most 35.00%" in lines(replace(FOUND, taps=taps), tmp_path)[1]


def test_luck_is_that_of_the_draws_of_the_heads_that_are_believed(tmp_path):
    """7 points above the line by one draw of 100 images are chance (10.7 points), whatever sixteen own draws would resolve."""
    taps = tuple(replace(tap, clean=0.1, audit=0.35, baseline=0.28) for tap in TAPS)
    found = replace(FOUND, taps=taps, line=FRESH_REFIT, num_train=100)
    config = Config(heads=HeadsConfig(draws=16, audit_draws=1))
    assert lines(found, tmp_path, config)[2].startswith("means: no tap beyond what heads refitted")
    many = Config(heads=HeadsConfig(draws=1, audit_draws=16))
    assert "heads know 7.00 ± 2.67 points more" in lines(found, tmp_path, many)[2]


def test_a_network_that_learns_the_labels_is_read_from_its_own_heads(tmp_path):
    """Joint heads fit 90 % of their labels; audit heads, whose labels the backbone never saw, stay near chance."""
    taps = (replace(TAPS[0], clean=0.3, audit=0.15), replace(TAPS[1], clean=0.9, audit=0.12))
    joint = Config(heads=HeadsConfig(joint=1.0))
    _, learned, means, *_ = lines(replace(FOUND, taps=taps), tmp_path, joint)
    assert "at most 90.00%, at tap 3.attn" in learned
    assert "from 30.00% at tap 0 to 90.00% at tap 3.attn, and audit heads" in means
    assert means.endswith("at most 15.00%")
    assert "at most 15.00%, at tap 0" in lines(replace(FOUND, taps=taps), tmp_path)[1]


def test_run_without_heads_or_records_promises_none(tmp_path):
    config = Config(log=LogConfig(tensorboard=False))
    assert lines(replace(FOUND, taps=()), tmp_path, config)[1:] == [
        "learned: held-out top-1 50.00%",
        f"figures: by step {tmp_path}/metrics.jsonl",  # no epoch was finished
    ]


def test_stopped_run_says_how_it_goes_on(tmp_path):
    config = Config(log=LogConfig(wandb="offline"))
    stopped = lines(None, tmp_path, config, status="requeue")
    assert stopped[1] == "next: the same command again, which goes on from this very sample"
    assert "wandb sync" in stopped[2]


@pytest.mark.long
def test_start_behind_the_last_checkpoint_finds_what_the_one_before_found(tmp_path):
    """As of a run that was killed while its last figures were drawn: what closed it is measured again."""
    config = small_config(tmp_path, "closed", epochs=1)

    def found():
        assert job.run(config) == 0
        folder = tmp_path / "closed"
        return json.loads((folder / "status.json").read_text())["memory"], (folder / MEMORY_FILE).read_bytes()

    first = found()
    assert first[0]
    (tmp_path / "closed" / MEMORY_FILE).unlink()
    assert found() == first


@pytest.mark.long
def test_a_run_that_goes_on_leaves_nothing_of_its_earlier_end(detached_run, tmp_path):
    """Its weights and its memory are of fewer epochs: they are gone until it ends again, and weights are the checkpoint's."""
    folder = shutil.copytree(detached_run, tmp_path / "detached")
    ended = [folder / "memory.json", folder / "weights" / "last.safetensors"]
    assert all(path.is_file() for path in ended)
    config, steps = (
        small_config(tmp_path, "detached", epochs=9),
        json.loads((folder / "status.json").read_text())["step"],
    )
    assert job.run(replace(config, max_steps=steps + 1)) == 0
    assert not any(path.exists() for path in ended)
    assert read_weights(str(folder)).words.endswith(f"step={steps + 1:09d}")


@pytest.mark.long
def test_a_run_tells_what_its_heads_cost_and_is_the_same_run(tmp_path, capfd):
    status = {}
    for name, is_on in (("timed", True), ("untimed", False)):
        config = replace(
            small_config(tmp_path, name, epochs=12),
            eval=EvalConfig(every=1000, clean_every=1000, overhead=is_on),
        )
        assert job.run(config) == 0
        told = capfd.readouterr().out
        assert ("overhead of the heads: " in told) is is_on
        status[name] = json.loads((tmp_path / name / "status.json").read_text())
        again = status[name].get("overhead")
        assert job.run(config) == 0  # finds no step left
        assert json.loads((tmp_path / name / "status.json").read_text()).get("overhead") == again
        capfd.readouterr()
    assert status["timed"].pop("overhead")["num_pairs"] == 3
    assert status["timed"]["weights_sha256"] == status["untimed"]["weights_sha256"]
