"""What the audit of a finished run finds, and on which labels."""

import json
from dataclasses import replace

import pytest
import torch
from small_runs import small_config

from rlpheads.engine.audits import audit_table
from rlpheads.engine.audits.audit_features import FeatureReader, FeatureStore, parse_places
from rlpheads.engine.audits.audit_run import AuditOptions, audit_labels, audit_run
from rlpheads.engine.config.learning import RegularizerConfig
from rlpheads.engine.config.run import EvalConfig
from rlpheads.engine.learner.learner import build_heads
from rlpheads.engine.runs.checkpoint import read_manifest
from rlpheads.engine.runs.opened_run import open_checkpoint
from rlpheads.engine.training import job
from rlpheads.memorization.baselines.head_only import head_only_rla
from rlpheads.memorization.heads.head_losses import HeadTerms
from rlpheads.memorization.records.ledger_file import read_ledger

pytestmark = pytest.mark.long

CPU = torch.device("cpu")


def test_an_audit_leaves_unreadable_images_out(spoiled, tmp_path):
    """All is as if they were not there: features, the run's own labels and fresh ones all belong to the other images."""
    assert job.run(replace(spoiled, run=replace(spoiled.run, dir=str(tmp_path), name="spoiled"))) == 0
    found = audit_run(open_checkpoint(tmp_path / "spoiled"), AuditOptions(device="cpu"))
    assert (found.num_train, found.num_equal, found.num_skipped) == (23, 7, 2)
    assert all(0 <= tap.found.own_M[0] * 23 <= 23 and (tap.found.own_M[0] * 23) % 1 < 1e-6 for tap in found.taps)


def test_an_audit_has_the_steered_factor_of_its_checkpoint(tmp_path):
    config = small_config(tmp_path, "steered", epochs=2)
    steered = RegularizerConfig(kind="uniform", factor=0.5, target=0.0)
    assert job.run(replace(config, regularizer=steered, eval=EvalConfig(every=1000, clean_every=1))) == 0
    opened = open_checkpoint(tmp_path / "steered")
    rows = opened.folder.metrics("epoch")
    audit = audit_run(opened, AuditOptions(draws=4, device="cpu"))
    assert rows[0]["regularizer_factor"] == 0.5
    assert audit.regularizer_factor == read_manifest(opened.saved.path)["regularizer_factor"]
    assert audit.regularizer_factor not in [row["regularizer_factor"] for row in rows]  # the last pass moved it again


def test_features_and_own_labels_reproduce_the_runs_own_ledger(detached_run):
    """The run's saved heads, on what the audit reads and on the labels that it takes for the run's own."""
    run = open_checkpoint(detached_run)
    model = run.load_model()
    with FeatureStore(run.config, FeatureReader(model, parse_places(None, model), norm=False), CPU) as store:
        tables = store.read(run.sources.train).tables
    taps, everyone = [table.table_ND for table in tables], tables[0].is_read_N
    heads = build_heads(run.config, (24, 24), "heads", run.config.heads.draws)
    run.load_weights("heads", heads)
    losses = heads(taps, audit_labels(run, 4, everyone, everyone, "0").own_MN, HeadTerms())
    ledger = read_ledger(detached_run / "ledger" / "epoch=0006" / "clean.parquet")
    torch.testing.assert_close(losses.bits_TMB.detach(), torch.tensor(ledger.bits[:, :2]), atol=1e-4, rtol=1e-4)


def test_detached_features_hold_nothing_about_the_labels(detached_run):
    """λ = 0: the backbone never saw them, so that own labels are just further fresh labels."""
    audit = audit_run(open_checkpoint(detached_run), AuditOptions(taps="inside", level=0.999))
    for tap in audit.taps:
        assert abs(tap.found.label_excess.value) < tap.found.label_excess.luck
        assert tap.control.all_rows == head_only_rla(5, 179, 24)
        assert tap.found.rank == 23
    assert (audit.num_train, audit.num_equal, audit.num_own_draws) == (179, 179, 2)
    assert audit.num_fresh_draws > 100
    assert {round(tap.found.membership_excess.level, 7) for tap in audit.taps} == {1 - 0.001 / len(audit.taps)}
    fresh = {tap.tap: tap.found.heldout_F for tap in audit.taps}
    assert len(set(fresh.values())) == len(fresh)


def test_taps_epochs_and_runs_have_fresh_labels_of_their_own(detached_run):
    """One set of labels for all would show one chance event at all of them."""
    run = open_checkpoint(detached_run)
    every = torch.ones(179, dtype=torch.bool)
    other_run = replace(run, config=replace(run.config, run=replace(run.config.run, name="another arm")))
    other_epoch = replace(run, saved=replace(run.saved, step=run.saved.step + 1))
    audits = [(run, "0"), (run, "1"), (other_run, "0"), (other_epoch, "0")]
    tables = [audit_labels(opened, 4, every, every, place).members_FE for opened, place in audits]
    again = audit_labels(run, 4, every, every, "0").members_FE
    assert torch.equal(tables[0], again)
    assert not any(torch.equal(tables[0], other) for other in tables[1:])


def test_a_network_that_memorises_is_found_out(tmp_path):
    config = small_config(tmp_path, "joint", epochs=50, joint=1.0, draws=1)
    assert job.run(config) == 0
    audit = audit_run(open_checkpoint(tmp_path / "joint"), AuditOptions(level=0.99))
    last = audit.taps[-1].found
    assert last.label_excess.is_positive
    assert last.label_excess.value > 0.2


def test_the_classes_of_held_out_and_of_mislabelled_images_stand_beside_the_networks_answers(tmp_path):
    """The network's answers are those that its own ledgers hold; the probe and the network are asked about the same images."""
    config = small_config(tmp_path, "noisy", epochs=2)
    assert job.run(replace(config, data=replace(config.data, label_noise=0.2))) == 0
    run = open_checkpoint(tmp_path / "noisy")
    audit = audit_run(run, AuditOptions(draws=4, device="cpu"))
    clean, heldout = (read_ledger(run.folder.ledger(1, phase)) for phase in ("clean", "heldout"))
    truth = run.sources.train.truth
    of_noisy = clean.predicted[truth.index] == truth.true_class
    assert audit.network.heldout.value == pytest.approx(heldout.class_hit.mean())
    assert audit.network.true_class.value == pytest.approx(of_noisy.mean())
    for tap in audit.taps:
        gain = tap.classes.probe.heldout.value - audit.network.heldout.value
        assert tap.classes.heldout_gain.value == pytest.approx(gain)
    assert "true class" in audit_table.class_probe_table(audit).columns[3].header
    stored = json.loads(audit.to_json())["taps"][0]["classes"]["heldout_gain"]
    assert stored == audit.taps[0].classes.heldout_gain._asdict()


def test_without_noise_the_table_of_classes_has_no_column_of_mislabelled_images(detached_run):
    audit = audit_run(open_checkpoint(detached_run), AuditOptions(draws=4, device="cpu"))
    assert len(audit_table.class_probe_table(audit).columns) == 3
    assert json.loads(audit.to_json())["network"]["true_class"]["value"] is None
