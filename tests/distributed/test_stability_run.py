"""Ranks that meet something not finite do the same as one rank does; a rank whose weights drift is named."""

from functools import partial

import pytest
from faulty_steps import Fault, put_in
from real_runs import Finished, Runner

pytestmark = [pytest.mark.distributed, pytest.mark.long]

SMALL = ["--data.val_fraction", "0.9", "--epochs", "2", "--batch_size", "32", "--log_every", "3", "--accumulate", "2"]
SMALL += [
    "--model.args.drop_rate",
    "0",
    "--model.ema_decay",
    "0.9",
    "--regularizer.factor",
    "1",
    "--log.tensorboard",
    "false",
]


def faulty_run(runner: Runner, name: str, *flags: str, ranks: int, wanted: list[Fault]) -> Finished:
    """A run of 2 epochs of 5 steps, with EMA, accumulation and audit heads, and faults in its steps."""
    return runner.join(runner.fork(name, *SMALL, *flags, ranks=ranks, prepare=partial(put_in, wanted)), name)


@pytest.mark.parametrize("response", ["skip", "rollback"])
def test_two_ranks_leave_out_what_one_rank_leaves_out(runner, response):
    """An infinity in one rank's gradient is everybody's; it is at the whole batch's where there is one rank."""
    flags = ["--stability.on_nonfinite", response]
    two = faulty_run(runner, f"two-{response}", *flags, ranks=2, wanted=[Fault(7, rank=1), Fault(8, rank=0)])
    one = faulty_run(runner, f"one-{response}", *flags, ranks=1, wanted=[Fault(7), Fault(8)])
    assert (two.code, one.code) == (0, 0), two.output
    events = [{key: row[key] for key in ("step", "event")} for row in two.rows("event")]
    assert events == [{key: row[key] for key in ("step", "event")} for row in one.rows("event")]
    assert len(events) == (2 if response == "skip" else 1)
    for name, table in two.ledgers.items():
        assert table["status"].to_pylist() == one.ledgers[name]["status"].to_pylist(), name
        assert table["count"].to_pylist() == one.ledgers[name]["count"].to_pylist(), name
    left_out = sum(status == 2 for status in two.ledgers["ledger/epoch=0001/running.parquet"]["status"].to_pylist())
    assert left_out == 64
    for figure in ("train_loss", "eval_loss", "eval_ema_loss"):
        ours, theirs = (run.rows("epoch")[-1][figure] for run in (two, one))
        assert ours == pytest.approx(theirs, rel=1e-4), figure


def test_an_epoch_of_which_every_batch_is_left_out_has_no_figures_and_the_run_goes_on(runner):
    flags = ["--epochs", "3", "--stability.on_nonfinite", "skip", "--stability.max_skipped", "9"]
    done = faulty_run(runner, "left-out", *flags, ranks=1, wanted=[Fault(step) for step in range(6, 11)])
    assert done.code == 0, done.output
    rows = done.rows("epoch")
    assert ["train_loss" in row for row in rows] == ["rla_running" in row for row in rows] == [True, False, True]
    assert rows[1]["train_skipped"] == 160
    assert "loss: train –, held-out" in done.output
    assert set(done.ledgers["ledger/epoch=0001/running.parquet"]["status"].to_pylist()) <= {0, 2}


def test_a_rank_whose_weights_drift_is_named_and_ends_the_run(runner):
    drifting = faulty_run(
        runner, "drifting", "--stability.drift_every", "2", ranks=2, wanted=[Fault(3, "weights", rank=1, size=1e-3)]
    )
    assert drifting.code == 1
    assert "replicas drift: after step 4 these weights are not those of the other ranks: rank 1: backbone" in (
        drifting.output
    )
    assert drifting.status["status"] == "failed"
    assert not list((drifting.folder / "checkpoints").glob("step=*"))


@pytest.mark.slow
def test_images_that_are_a_million_times_too_large_at_one_rank_are_a_spike(runner):
    huge = faulty_run(runner, "huge", "--epochs", "6", ranks=2, wanted=[Fault(28, "images", rank=1, size=1e6)])
    assert huge.code == 0, huge.output
    (event,) = huge.rows("event")
    assert (event["event"], event["step"]) == ("spike", 28)
    assert event["image_rms_z"] > 1000
