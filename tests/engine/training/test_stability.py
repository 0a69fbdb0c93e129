"""Steps that are not finite: stopped at, skipped, or rolled back behind; nothing that is not finite is ever saved."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faulty_steps import Fault, faults
from small_runs import small_config

from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.learning import StabilityConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.training import job
from rlpheads.memorization.records.ledger_file import SKIPPED, LedgerTable, read_ledger

SKIP, ROLL_BACK = StabilityConfig(on_nonfinite="skip"), StabilityConfig(on_nonfinite="rollback")
EVERY_STEP = [Fault(step) for step in range(1, 11)]


class Run:
    """A run in a folder: 2 epochs of 5 steps, with a checkpoint at the end of each."""

    def __init__(self, config: Config, *wanted: Fault):
        with faults(*wanted) as self.taken:
            self.code = job.run(config)
        self.folder = Path(config.run.dir) / config.run.name
        self.status = json.loads((self.folder / "status.json").read_text())

    @property
    def rows(self) -> list[dict]:
        text = (self.folder / "metrics.jsonl").read_text()
        return [json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in text.splitlines()]

    @property
    def events(self) -> list[dict]:
        return [row for row in self.rows if row["kind"] == "event"]

    @property
    def ledgers(self) -> list[LedgerTable]:
        return [read_ledger(self.folder / "ledger" / f"epoch={epoch:04d}" / "running.parquet") for epoch in range(2)]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir())


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Config]:
    def settings(name: str, **changes: object) -> Config:
        config = small_config(tmp_path, name, epochs=2)
        config = replace(config, log_every=3, log=replace(config.log, tensorboard=False))
        every = {"checkpoint": replace(config.checkpoint, every=1, keep=9), "ledger": replace(config.ledger, every=1)}
        return replace(config, **{**every, **changes})

    return settings


def same_records(left: Run, right: Run) -> None:
    """Weights, optimizer steps and ledgers are the same to the bit."""
    assert left.status["weights_sha256"] == right.status["weights_sha256"]
    for ours, theirs in zip(left.ledgers, right.ledgers, strict=True):
        assert (ours.status == theirs.status).all()
        assert str(ours.bits) == str(theirs.bits)


@pytest.mark.long
@pytest.mark.parametrize(("step", "limit"), [(5, None), (7, 7)])
def test_an_infinite_gradient_just_before_a_save_is_never_saved(small, capfd, step, limit):
    """At the last step of an epoch, and at max_steps: exit code 1, and the same command does what the words say."""
    config = small("stopped", max_steps=limit)
    stopped = Run(config, Fault(step))
    last = [] if step == 5 else ["step=000000005"]
    promise = "the same command begins again" if step == 5 else "the same command goes on from it"
    assert (stopped.code, stopped.status["status"], stopped.checkpoints if last else []) == (1, "failed", last)
    said = capfd.readouterr().err
    assert f"not finite at step {step}: backbone_grad_norm=inf" in said
    assert f"{promise}, and meets the same batch again: add --stability.on_nonfinite skip" in said
    again = Run(config, Fault(step))
    assert (again.code, again.taken[0]) == (1, 1 if step == 5 else 6)
    skipping = Run(replace(config, stability=SKIP), Fault(step))
    assert (skipping.code, skipping.status["status"]) == (0, "done")
    assert [(event["event"], event["step"]) for event in skipping.events] == [("skipped", step)]


@pytest.mark.long
@pytest.mark.parametrize(("update", "num_labels"), [("fused", 1100), ("fused", 5), ("separate", 5)])
def test_skipping_a_batch_is_leaving_it_out(small, update, num_labels):
    """A step that is skipped changes what a roll-back without it changes: nothing; its rows are skipped in the ledger.

    Also where the heads are updated without gradients that anything could look at later, in tiles where labels are many.
    """
    wanted = [Fault(7), Fault(8)]
    if num_labels < 1000:  # in tiles there is no gradient of the weight that could be spoiled
        wanted.insert(0, Fault(7, part="heads"))
    heads = replace(small("heads").heads, update=update, labels=num_labels)
    skipped = Run(small("skipped", stability=SKIP, heads=heads), *wanted)
    rolled = Run(small("rolled", stability=ROLL_BACK, heads=heads), *wanted)
    assert (skipped.code, rolled.code) == (0, 0)
    assert rolled.taken == [*range(1, 11), 6, 8, 9, 10, 6, 9, 10]  # each fault is read at the end of its window
    same_records(skipped, rolled)
    (first, second) = skipped.ledgers
    assert (first.status == SKIPPED).sum() == 0
    assert (second.status == SKIPPED).sum() == 2 * 32
    assert [event["step"] for event in skipped.events] == [7, 8]
    (event,) = rolled.events
    assert (event["event"], event["to_step"], event["left_out"]) == ("rolled back", 5, [7, 8])
    assert any("left out from here on: step 8" in warning for warning in rolled.status["warnings"])
    row = next(row for row in skipped.rows if row["kind"] == "step" and row["step"] == 9)
    assert row["left_out"] == 2


@pytest.mark.long
def test_too_many_in_a_row_roll_back_and_are_left_out_also_after_a_resume(small):
    stability = replace(SKIP, max_skipped=1)
    wanted = [Fault(7), Fault(8)]
    whole = Run(small("whole", stability=stability), *wanted)
    assert whole.taken == [*range(1, 11), 6, 9, 10]
    Run(small("parts", stability=stability, max_steps=9), *wanted)
    manifest = json.loads((Path(small("parts").run.dir) / "parts/checkpoints/step=000000009/manifest.json").read_text())
    assert manifest["position"]["left_out"] == [7, 8]
    parts = Run(small("parts", stability=stability), *wanted)
    assert (whole.code, parts.code) == (0, 0)
    same_records(whole, parts)


@pytest.mark.long
def test_a_run_that_is_never_finite_ends_after_as_many_rollbacks_as_it_may(small, capfd):
    run = Run(small("hopeless", stability=replace(ROLL_BACK, max_rollbacks=2)), *EVERY_STEP)
    assert (run.code, run.status["status"]) == (1, "failed")
    assert "rolled back to the beginning 2 times already (stability.max_rollbacks)" in capfd.readouterr().err


def test_weights_that_are_not_finite_are_neither_evaluated_nor_saved(small, capfd):
    """Whatever made them so; the update of the step before was finite."""
    run = Run(small("poisoned", max_steps=6), Fault(6, "weights", size=torch.inf))
    assert (run.code, run.checkpoints) == (1, ["step=000000005"])
    assert "The last checkpoint, step=000000005, is whole and finite" in capfd.readouterr().err


@pytest.mark.long
def test_a_launchers_restarts_that_meet_the_same_step_are_bounded(small, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this-job")
    config = small("restarted", max_steps=3, stability=StabilityConfig(max_rollbacks=1))
    for times in (1, 2):
        assert Run(config, Fault(2)).status["diverged"] == {"step": 2, "times": times}
    with pytest.raises(ConfigError, match=r"at step 2 2 times in a row .*--stability\.on_nonfinite skip"):
        Run(config, Fault(2))
    assert Run(replace(config, stability=SKIP), Fault(2)).code == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "figure"), [(Fault(31, size=300.0), "backbone_grad_norm"), (Fault(31, "images", size=1e6), "image_rms")]
)
def test_a_spike_is_named_at_the_next_log_line_and_in_the_metrics(small, capfd, fault, figure):
    """Nothing is done about it. A network that normalises its inputs hides from its gradient how large they are."""
    config = small("spike", epochs=7)
    config = replace(config, checkpoint=replace(config.checkpoint, every=7), ledger=replace(config.ledger, every=0))
    run = Run(config, fault)
    assert run.code == 0
    (event,) = run.events
    assert (event["event"], event["step"], event["epoch"]) == ("spike", 31, 6)
    assert event[f"{figure}_z"] > 10
    assert "warning: spike at step 31: " in capfd.readouterr().out
