"""Beside trained heads stands what a head reaches that is refitted to fresh labels on the very features of the clean pass."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import small_config

from rlpheads.engine.audits.audit_features import FeatureReader, FeatureStore
from rlpheads.engine.config.learning import RegularizerConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.learner.fresh_refit import keeps_features
from rlpheads.engine.runs.opened_run import open_checkpoint
from rlpheads.engine.training import job
from rlpheads.engine.training.steering import target_errors
from rlpheads.memorization.heads.labels import label_table
from rlpheads.memorization.probes.probe_heads import LeastSquaresProbe


def trained(config: Config) -> tuple[Path, dict]:
    assert job.run(config) == 0
    folder = Path(config.run.dir) / config.run.name
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return folder, [row for row in rows if row["kind"] == "epoch"][-1]


@pytest.mark.long
def test_it_is_what_a_least_squares_probe_reaches_on_the_checkpoints_features(tmp_path):
    folder, row = trained(small_config(tmp_path, "refit", epochs=2))
    run = open_checkpoint(folder)
    model = run.load_model()
    with FeatureStore(run.config, FeatureReader(model, model.places, norm=True), torch.device("cpu")) as store:
        tables = store.read(run.sources.train).tables
    labels_FN = label_table(len(tables[0].table_ND), 5, num_draws=200, seed=12345, split="other labels")
    for tap, table in enumerate(tables):
        expected = LeastSquaresProbe()(table, labels_FN, 5).accuracy_M
        standard_error = float(expected.std()) / len(expected) ** 0.5
        assert row["fresh_refit_clean"][tap] == pytest.approx(float(expected.mean()), abs=5 * standard_error)
        assert 0 < row["fresh_refit_half_width_clean"][tap] < 0.01


@pytest.mark.long
def test_heads_that_the_backbone_learns_with_are_beyond_it_and_others_are_not(tmp_path, capsys):
    trained(small_config(tmp_path, "joint", epochs=40, joint=1.0, draws=1))
    assert "heads know" in capsys.readouterr().out
    trained(small_config(tmp_path, "detached", epochs=2))
    assert "no tap beyond what heads refitted to fresh labels reach" in capsys.readouterr().out


@pytest.mark.long
def test_switched_off_the_closed_form_of_a_head_alone_is_the_line(tmp_path, capsys):
    config = small_config(tmp_path, "off", epochs=1)
    _, row = trained(replace(config, eval=replace(config.eval, refit="off")))
    assert "fresh_refit_clean" not in row
    assert "head-only baseline:" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("num_samples", "labels", "refit", "kept"),
    [
        (50_000, 1000, "auto", True),
        (200_000, 200_000, "auto", False),  # a label for every image: hours of products
        (200_000, 200_000, "on", True),
        (1_281_167, 1000, "auto", False),  # their features take 12 GB
    ],
)
def test_auto_refits_where_it_has_room_and_time_for_it(tmp_path, num_samples, labels, refit, kept):
    config = small_config(tmp_path, "auto", epochs=1)
    config = replace(config, heads=replace(config.heads, labels=labels), eval=replace(config.eval, refit=refit))
    dims = (768,) * 3 if num_samples > 1_000_000 else (192,)
    assert keeps_features(config, num_samples, dims) == kept


@pytest.mark.wrong("config")
@pytest.mark.parametrize("target", [0.8, -0.3])
def test_a_target_that_no_head_reaches_is_refused(target):
    settings = RegularizerConfig(factor=0.5, target=target)
    (error,) = target_errors(settings, [0.3, 0.35], chance=0.1)
    assert str(error).startswith(f"regularizer.target: got {target}; allowed: between -0.250 (chance) and +0.700")
    assert not list(target_errors(replace(settings, target=0.02), [0.3, 0.35], chance=0.1))
