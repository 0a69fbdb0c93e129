"""The loop's own decisions: how λ is steered, when a run has diverged, what an epoch leaves behind."""

import io
import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rlpheads.engine.config.learning import RegularizerConfig
from rlpheads.engine.config.run import EvalConfig
from rlpheads.engine.report.display import Display
from rlpheads.engine.runs.resume import ResumePoint
from rlpheads.engine.training.loop import fit
from rlpheads.engine.training.outcome import TrainingDivergedError
from rlpheads.engine.training.training import is_due, num_due
from rlpheads.memorization.records.ledger_file import read_ledger


def trained(training) -> tuple[list[dict], str]:
    out = io.StringIO()
    console = Console(file=out, width=160)
    fit(
        training,
        Display(
            console, training.run.config.epochs, training.order.num_steps, training.run.launch.device, verbose=True
        ),
    )
    return training.run.folder.metrics("epoch"), out.getvalue()


def steered(tiny, build, target: float, epochs: int = 3) -> list[float]:
    regularizer = RegularizerConfig(kind="uniform", factor=0.5, target=target)
    rows, _ = trained(build(tiny, epochs=epochs, regularizer=regularizer))
    return [row["regularizer_factor"] for row in rows]


@pytest.mark.long
def test_factor_rises_while_too_much_is_memorised_and_falls_otherwise(tiny, build):
    """At first the heads know nothing: they are at chance, far below what a head alone could do (29 points)."""
    rising, falling = steered(tiny, build, target=-0.5), steered(tiny, build, target=0.0)
    assert rising[0] == falling[0] == 0.5
    assert rising == sorted(rising)
    assert rising[-1] > 0.5 > falling[-1]


@pytest.mark.long
def test_factor_stays_within_bounds_however_hard_it_is_steered(tiny, build):
    regularizer = RegularizerConfig(kind="uniform", factor=0.5, target=0.9, target_rate=1e9)
    rows, _ = trained(build(tiny, epochs=6, regularizer=regularizer))
    factors = [row["regularizer_factor"] for row in rows]
    assert factors[1] == pytest.approx(0.05)
    assert factors[-1] == pytest.approx(0.5e-3)


@pytest.mark.long
def test_max_steps_at_the_end_of_an_epoch_leaves_the_epoch_whole(tiny, build):
    training = build(tiny, max_steps=1437 // tiny.batch_size)
    rows, _ = trained(training)
    assert [row["epoch"] for row in rows] == [0]
    assert training.run.folder.ledger(0, "running").exists()


@pytest.mark.long
def test_factor_is_left_alone_without_a_target_and_reported_by_label(tiny, build):
    rows, _ = trained(build(tiny, regularizer=RegularizerConfig(kind="uniform", factor=0.5)))
    assert [row["regularizer_factor"] for row in rows] == [0.5, 0.5]
    assert rows[0]["regularizer_factor_per_label"] == 0.1
    assert "audit_rla_clean" in rows[0]


@pytest.mark.long
def test_factor_is_part_of_the_checkpoint(tiny, build):
    training = build(tiny, regularizer=RegularizerConfig(kind="uniform", factor=0.5, target=0.0))
    training.set_factor(0.125)
    training.save()
    training.saver.wait()
    (saved,) = training.run.folder.checkpoints.iterdir()
    assert json.loads((saved / "manifest.json").read_text())["regularizer_factor"] == 0.125
    again = build(tiny, regularizer=training.run.config.regularizer)
    again.resume(ResumePoint(saved, training.position, 0.125))
    assert again.term_weights.factor == 0.125


@pytest.mark.long
def test_run_without_heads_trains_and_prints_no_random_labels(tiny, build):
    rows, text = trained(build(tiny, heads=replace(tiny.heads, taps="none")))
    assert len(rows) == 2
    assert not any("rla" in name for row in rows for name in row)
    assert "random-label" not in text


@pytest.mark.long
def test_average_of_the_weights_is_evaluated_beside_them(tiny, build):
    rows, text = trained(build(tiny, model=replace(tiny.model, ema_decay=0.5)))
    assert {"eval_ema_top1", "eval_top1", "eval_ema_ece", "eval_ece"} <= rows[0].keys()
    assert "average" in text


def test_infinite_loss_ends_the_run(tiny, build):
    training = build(tiny, optim=replace(tiny.optim, lr=1e30), log_every=1)
    with pytest.raises(TrainingDivergedError, match=r"not finite at step \d+: .*class_loss=.*lower optim\.lr"):
        trained(training)


@pytest.mark.long
def test_epoch_lines_hold_the_bits_of_own_and_audit_heads(tiny, build):
    """Against the ledger's own rows, which hold every sample's bits."""
    training = build(tiny, epochs=1, heads=replace(tiny.heads, audit_draws=1, joint=0.5))
    (row,), _ = trained(training)
    table = read_ledger(training.run.folder.ledger(0, "clean"))
    assert table.metadata.draws == {"own": slice(0, 2), "audit": slice(2, 3)}
    for prefix, draws in (("", slice(0, 2)), ("audit_", slice(2, 3))):
        total_T = table.bits[:, draws].sum(-1, dtype=np.float64).mean(1)
        assert row[f"{prefix}bits_clean"] == pytest.approx(total_T.tolist(), rel=1e-6)
        assert row[f"{prefix}bits_per_sample_clean"] == pytest.approx((total_T / 1437).tolist(), rel=1e-6)
        assert row[f"{prefix}bits_per_head_parameter_clean"] == pytest.approx((total_T / (24 * 4)).tolist(), rel=1e-6)
    num_parameters = sum(parameter.numel() for parameter in training.learner.tapped.parameters())
    per_parameter = [bits / num_parameters for bits in row["bits_clean"]]
    assert row["bits_per_network_parameter_clean"] == pytest.approx(per_parameter)
    assert "audit_bits_per_network_parameter_clean" not in row


@pytest.mark.long
def test_epoch_lines_hold_calibration_and_margins(tiny, build):
    """The training set's calibration only where a clean pass was due; margins of own and audit heads in every phase."""
    training = build(tiny, heads=replace(tiny.heads, audit_draws=1), eval=replace(tiny.eval, clean_every=0))
    (first, last), text = trained(training)
    assert "clean_ece" not in first
    assert 0 < last["clean_ece"] < 1
    assert f"ECE: clean {100 * last['clean_ece']:.2f}%, held-out {100 * last['eval_ece']:.2f}%" in text
    assert not any("ece" in name for name in last if name.startswith("train"))
    for phase in ("running", "clean", "heldout"):
        margin_TMN = read_ledger(training.run.folder.ledger(1, phase)).margin
        for prefix, draws in (("", slice(0, 2)), ("audit_", slice(2, 3))):
            for name, level in (("p05", 0.05), ("median", 0.5), ("p95", 0.95)):
                expected_TM = np.nanquantile(margin_TMN[:, draws].astype(np.float64), level, axis=-1)
                expected_T = expected_TM.mean(1).tolist()
                assert last[f"{prefix}margin_{name}_{phase}"] == pytest.approx(expected_T, abs=1e-9)


@pytest.mark.long
def test_a_finished_run_says_how_much_of_a_labelling_it_holds(tiny, build):
    training = build(tiny, epochs=1)
    _, text = trained(training)
    table = read_ledger(training.run.folder.ledger(0, "clean"))
    assert "Rademacher estimate" in text
    assert "not resolvable: needs 7 draws of the labels" in text  # 1,437 samples, 5 labels, 2 draws
    accuracy = float(table.hit[1].mean())
    assert f"{(5 * accuracy - 1) / 4:.4f}" in text


class CountingDisplay(Display):
    """Keeps the images of every pass: as announced, and as counted."""

    def __init__(self, training):
        config, device = training.run.config, training.run.launch.device
        super().__init__(Console(file=io.StringIO()), config.epochs, training.order.num_steps, device)
        self.passes = []

    @contextmanager
    def evaluating(self, name, num_images):
        counts = []
        yield counts.append
        self.passes.append((name, num_images, sum(counts)))


@given(st.integers(0, 7), st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_what_is_due_is_counted_as_it_is_done(every, first, last, num_epochs):
    epochs = range(first, min(last, num_epochs))
    assert num_due(every, epochs, num_epochs) == sum(is_due(every, epoch, num_epochs) for epoch in epochs)


def test_what_is_left_ends_at_max_steps_and_is_counted_at_once(tiny, build):
    steps = build(tiny, batch_size=64, epochs=10**9, max_steps=5)
    num_heldout = steps.splits.heldout.ledger.num_samples
    closed = 5 // steps.order.num_steps
    assert steps.images_left == 5 * 64
    assert steps.evaluation_images_left == (closed + 1) * num_heldout + closed * steps.splits.clean.ledger.num_samples


@pytest.mark.long
def test_evaluations_are_shown_to_their_last_image_and_are_part_of_what_is_left(tiny, build):
    training = build(tiny, batch_size=64, epochs=2, eval=EvalConfig(every=1, clean_every=0))
    num_train, num_heldout = (split.ledger.num_samples for split in (training.splits.clean, training.splits.heldout))
    assert training.evaluation_images_left == 2 * num_heldout + num_train
    display = CountingDisplay(training)
    fit(training, display)
    passes = [("held-out", num_heldout)] * 2 + [("clean", num_train)]
    assert display.passes == [(name, count, count) for name, count in passes]
    assert training.evaluation_images_left == 0
    assert training.gauges.eta_seconds(1000, 1000) > training.gauges.eta_seconds(1000, 0) > 0
