"""`heads.labels: auto`, from the command line to the run folder, and what is said where the heads alone fit everything."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlpheads.engine.audits.audit_run import AuditOptions, audit_run
from rlpheads.engine.checks.checks import check_config
from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.files import read_config_file
from rlpheads.engine.config.schema import Config
from rlpheads.engine.learner.learner import build_heads
from rlpheads.engine.learner.shard_choice import HeadDemand, head_workload
from rlpheads.engine.model.plan import plan_model
from rlpheads.engine.runs.opened_run import open_checkpoint
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training.job import run
from rlpheads.engine.training.label_choice import SettledLabels, fit_into_memory, run_labels, settle_labels
from rlpheads.memorization.baselines.head_only import head_only_rla
from rlpheads.memorization.records.ledger_file import read_ledger


def with_labels(config: Config, labels: int | str, **heads: object) -> Config:
    return replace(config, heads=replace(config.heads, labels=labels, **heads))  # type: ignore[arg-type]


def settled(config: Config, folder: Path) -> SettledLabels:
    return settle_labels(config, plan_model(config, 10), open_sources(config), folder)


def test_auto_is_a_value_of_the_command_line():
    assert parse_config(["--run.name", "x", "--heads.labels", "auto"]).heads.labels == "auto"
    assert parse_config(["--run.name", "x", "--heads.labels", "7"]).heads.num_labels == 7
    with pytest.raises(ConfigError, match=r"heads\.labels.*got 'atuo'.*auto"):
        parse_config(["--run.name", "x", "--heads.labels", "atuo"])


def test_auto_takes_two_labels_on_the_digits_and_says_why(tiny, tmp_path):
    config, warnings = settled(with_labels(tiny, "auto"), tmp_path)
    assert config == with_labels(tiny, 2)
    assert "n=1437 samples and d=24 features" in warnings[0]
    assert "K=2, where it reaches 0.55" in warnings[0] or "no number of labels" in warnings[0]


@pytest.mark.long
def test_a_given_number_is_kept_and_warned_about_where_the_head_alone_fits_everything(tiny, tmp_path):
    assert settled(with_labels(tiny, 5), tmp_path) == (with_labels(tiny, 5), ())
    config, (warning,) = settled(with_labels(tiny, 1000), tmp_path)
    assert config.heads.labels == 1000
    assert "a linear head fits every one of 1000 random labels" in warning


def test_without_heads_there_is_nothing_to_choose(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"heads\.labels.*heads\.taps is none"):
        check_config(with_labels(tiny, "auto", taps="none"), world_size=1)
    assert settled(with_labels(tiny, 10**6, taps="none"), tmp_path).warnings == ()


def test_a_run_keeps_the_number_that_it_was_begun_with(tiny, tmp_path):
    """The settings in the folder stand for an older version of the rule that chose another number."""
    (tmp_path / "config.yaml").write_text("heads: {labels: 9}\n")
    assert settled(with_labels(tiny, "auto"), tmp_path).config == with_labels(tiny, 9)


@pytest.mark.long
def test_a_run_with_auto_is_whole_and_goes_on(tiny, capsys):
    config = with_labels(replace(tiny, epochs=1, max_steps=3), "auto")
    assert run(config) == 0
    first = capsys.readouterr().out
    folder = Path(config.run.dir) / config.run.name
    assert "warning: heads.labels: " in first
    assert "2 labels" in first
    assert read_config_file(str(folder / "config.yaml"))["heads"]["labels"] == 2
    assert run(replace(config, max_steps=None)) == 0
    assert "resumed from" in capsys.readouterr().out
    assert read_ledger(folder / "ledger" / "epoch=0000" / "clean.parquet").metadata.num_labels == 2
    assert "n=1437" in json.loads((folder / "status.json").read_text())["warnings"][0]


@pytest.mark.long
def test_labels_for_each_class_from_training_to_audit(tiny):
    """Five labels for each of ten digits: chance stays 1/5, a head has fifty rows, and probes are fitted class by class."""
    config = replace(with_labels(tiny, 5, balance="per_class", audit_draws=1), epochs=1)
    assert run(config) == 0
    opened = open_checkpoint(Path(config.run.dir) / config.run.name)
    manifest = opened.sources.train.manifest
    labels_MN = run_labels(config, manifest, 3)
    assert torch.equal(labels_MN[0] // 5, torch.from_numpy(manifest.targets).int())
    heads = build_heads(config, (24, 24), "heads", 2, num_blocks=10)
    opened.load_weights("heads", heads)
    assert heads.heads[1][1].weight.shape == (50, 24)
    (row,) = opened.folder.metrics("epoch")
    assert all(0.12 < accuracy < 0.28 for accuracy in row["rla_heldout"])
    bits_T, per_parameter_T = row["bits_clean"], row["bits_per_head_parameter_clean"]
    assert per_parameter_T == pytest.approx([bits / (10 * 24 * 4) for bits in bits_T])
    audit = audit_run(opened, AuditOptions(draws=4))
    expected = head_only_rla(5, 144, 24)
    assert audit.taps[0].control.all_rows == pytest.approx(expected, abs=0.01)
    assert audit.taps[0].found.fresh_F[0] == pytest.approx(expected, abs=0.08)


@pytest.mark.long
def test_a_head_for_each_class_is_warned_about_sooner(tiny, tmp_path):
    """144 images a digit and 24 features: six samples a feature are fitted by a head with 50 labels (capacity 13.6)."""
    assert settled(with_labels(tiny, 50), tmp_path).warnings == ()
    assert "fits every one of 50" in settled(with_labels(tiny, 50, balance="per_class"), tmp_path).warnings[0]


def demand_of(config: Config, world_size: int = 1) -> HeadDemand:
    """What heads take at two taps of 768 features."""
    cpu = torch.device("cpu")
    return HeadDemand(config, head_workload(config, (768, 768), 10, 0, cpu), world_size, cpu)


@pytest.mark.parametrize("balance", ["iid", "per_class"])
def test_labels_that_were_open_leave_half_of_the_memory(tiny, balance):
    config = with_labels(tiny, 100_000, balance=balance, update="separate", draws=1)
    settled = fit_into_memory(SettledLabels(config, ("before",)), demand_of(config), 1e9, is_open=True)
    blocks = 10 if balance == "per_class" else 1
    assert settled.config.heads.num_labels == int(5e8 / (16 * 2 * 769 * blocks))
    assert settled.warnings[0] == "before"
    assert settled.warnings[1].startswith(
        f"heads.labels auto: {settled.config.heads.num_labels:,}, not the 100,000 that the"
    )
    assert settled.warnings[1].endswith("a rank, which has 1 GB")


def test_labels_that_fit_are_kept(tiny):
    config = with_labels(tiny, 10_000, draws=1)
    settled = SettledLabels(config, ())
    assert fit_into_memory(settled, demand_of(config), 1e9, is_open=True) is settled


def test_labels_beyond_the_memory_are_refused_with_what_would_fit(tiny):
    config = with_labels(tiny, 100_000, update="separate", draws=1)
    with pytest.raises(ConfigError) as refused:
        fit_into_memory(SettledLabels(config, ()), demand_of(config), 1e9, is_open=False)
    assert str(refused.value) == (
        "heads.labels: got 100000; allowed: at most 40,637 labels or heads.shard class over 4 ranks (615 MB a rank, 153 kB "
        "sent a step): heads of 100,000 labels take 2.46 GB a rank, which has 1 GB"
    )
    shared = demand_of(replace(config, heads=replace(config.heads, shard="class")), world_size=4)
    assert fit_into_memory(SettledLabels(config, ()), shared, 1e9, is_open=False).config is config


def test_a_label_for_every_image_is_refused_with_the_ranks_that_would_hold_them(tiny):
    config = with_labels(tiny, 1_281_167, balance="balanced", update="separate", draws=1)
    for shard, world_size in (("none", 1), ("class", 2)):
        demand = demand_of(replace(config, heads=replace(config.heads, shard=shard)), world_size=world_size)
        with pytest.raises(ConfigError, match=r"^heads.labels: got 1281167; .* over 32 ranks .* 1,281,167 labels take"):
            fit_into_memory(SettledLabels(demand.config, ()), demand, 1e9, is_open=False)
