"""When a run ends early, what it leaves behind, and that a resumed run decides the same."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from rlpheads.engine.config.learning import EarlyStoppingConfig
from rlpheads.engine.config.run import CheckpointConfig, EvalConfig, LedgerConfig
from rlpheads.engine.report.display import Display
from rlpheads.engine.runs.checkpoint import list_whole
from rlpheads.engine.runs.resume import ResumePoint
from rlpheads.engine.runs.run_manifest import Position, read_run_manifest
from rlpheads.engine.training.early_stopping import stop_reason
from rlpheads.engine.training.loop import fit
from rlpheads.engine.training.outcome import Outcome


def first_stop(values: list[float | None], **settings) -> int | None:
    """Return the epoch after which a run with these figures ends; None in place of a figure: no evaluation."""
    settings = EarlyStoppingConfig(**settings)
    rows = [{"epoch": i} | ({} if value is None else {settings.metric: value}) for i, value in enumerate(values)]
    ends = [epoch for epoch in range(len(rows)) if stop_reason(settings, rows[: epoch + 1]) is not None]
    return ends[0] if ends else None


def test_patience_counts_evaluations_without_a_better_figure():
    values = [0.1, 0.3, 0.2, 0.3, 0.4, 0.4, 0.4]
    assert first_stop(values, patience=1) == 2
    assert first_stop(values, patience=2) == 3
    assert first_stop(values, patience=3) is None
    assert first_stop([*values[:4], 0.25], patience=3) == 4


def test_epochs_without_an_evaluation_count_for_nothing():
    assert first_stop([0.3, None, 0.2, None, None, 0.1], patience=2) == 5


def test_a_loss_is_better_where_it_is_lower():
    assert first_stop([1.0, 0.9, 0.8, 0.85, 0.81], patience=2, metric="eval_loss") == 4
    assert first_stop([0.8, 0.9, 1.0], patience=2, metric="eval_loss") == 2


def test_small_steps_count_as_none_but_add_up():
    assert first_stop([0.10, 0.14, 0.18, 0.22], patience=2, min_delta=0.05) is None
    assert first_stop([0.10, 0.12, 0.14], patience=2, min_delta=0.05) == 2


def test_a_figure_that_is_no_number_is_not_better():
    assert first_stop([1.0, float("nan"), float("nan")], patience=2, metric="eval_loss") == 2


def test_the_reason_says_figure_best_and_when():
    rows = [{"epoch": epoch, "eval_top1": value} for epoch, value in enumerate([0.5, 0.75, 0.7, 0.6])]
    assert stop_reason(EarlyStoppingConfig(patience=2), rows) == (
        "early_stopping: eval_top1 is not better than 0.75, of epoch 1, for 2 evaluations"
    )
    assert stop_reason(EarlyStoppingConfig(), rows) is None


def fitted(training) -> Outcome:
    console = Console(file=io.StringIO(), width=160)
    return fit(
        training,
        Display(
            console, training.run.config.epochs, training.order.num_steps, training.run.launch.device, verbose=False
        ),
    )


@pytest.fixture
def impatient(tiny):
    """No accuracy can rise by more than 1, so that the third epoch is the last, and nothing else would be written."""
    return replace(
        tiny,
        epochs=50,
        early_stopping=EarlyStoppingConfig(patience=2, min_delta=1.0),
        eval=EvalConfig(clean_every=0),
        ledger=LedgerConfig(every=0),
        checkpoint=CheckpointConfig(every=40),
    )


@pytest.mark.long
def test_the_epoch_that_ends_a_run_is_kept_like_any_last_one(impatient, build):
    training = build(impatient)
    outcome = fitted(training)
    assert outcome.status == "done"
    assert outcome.reason.startswith("early_stopping: eval_top1 is not better by more than 1 than ")
    rows = training.run.folder.metrics("epoch")
    assert [("eval_top1" in row, "clean_top1" in row) for row in rows] == [(True, False), (True, False), (True, True)]
    assert training.run.folder.ledger(2, "clean").exists()
    assert [path.name for path in list_whole(training.run.folder.checkpoints)] == [f"step={training.num_updates:09d}"]
    assert outcome.findings is not None
    assert outcome.findings.memory


@pytest.mark.long
def test_a_run_that_ended_early_stays_ended(impatient, build):
    first = build(impatient)
    ended = fitted(first)
    saved = list_whole(first.run.folder.checkpoints)[-1]
    position = read_run_manifest(saved).position
    assert position == Position(3)
    again = build(impatient)
    again.resume(ResumePoint(saved, position, 0.0))
    assert fitted(again).reason == ended.reason
    assert len(first.run.folder.metrics("epoch")) == 3
