"""Per-sample measures gathered over a run's ledgers."""

import math
from dataclasses import replace

import numpy as np
import pytest

from rlpheads.memorization.measures.sample_history import DYNAMIC_MEASURES, gather_history, sample_measures
from rlpheads.memorization.records.ledger_file import SEEN, UNSEEN, LedgerError, LedgerMetadata, LedgerTable

METADATA = LedgerMetadata("f" * 64, 0, 5, (0, 3), 2, epoch=0, phase="running", split="train", step=9)


def ledger(epoch, hits, losses, seen=None):
    """A ledger of two taps and two draws; the heads' hits of a sample are those of its class."""
    hits = np.array(hits, dtype=bool)
    num_samples = len(hits)
    seen = np.ones(num_samples, dtype=bool) if seen is None else np.array(seen)
    floats = np.where(seen, np.array(losses, dtype=np.float32), np.float32(np.nan))
    return LedgerTable(
        metadata=replace(METADATA, epoch=epoch, step=epoch),
        index=np.arange(num_samples),
        status=np.where(seen, SEEN, UNSEEN).astype(np.uint8),
        count=seen.astype(np.int32),
        target=np.zeros(num_samples, dtype=np.int64),
        class_loss=floats,
        class_hit=hits & seen,
        predicted=np.full(num_samples, -1, dtype=np.int32),
        confidence=np.full(num_samples, np.nan, dtype=np.float32),
        hit=np.broadcast_to(hits & seen, (2, 2, num_samples)),
        bits=np.stack([np.stack([floats, floats + 2]), np.stack([-floats, -floats])]),
        margin=np.broadcast_to(-floats, (2, 2, num_samples)),
    )


def test_measures_computed_by_hand():
    # always, chance hit then late (three in a row, but for the end), never
    tables = [
        ledger(0, [1, 1, 0], [0, 0, 2]),
        ledger(1, [1, 0, 0], [0, 1, 2]),
        ledger(2, [1, 1, 0], [0, 0, 2]),
    ]
    measures = sample_measures(gather_history(tables))
    assert measures["first-learned epoch (3 in a row)"].tolist() == [0, 2, 3]
    assert measures["first hit"].tolist() == [0, 0, 3]
    assert measures["learned for good"].tolist() == [0, 2, 3]
    assert measures["forgetting events"].tolist() == [0, 1, 0]
    assert measures["class loss"].tolist() == pytest.approx([0, 1 / 3, 2])
    assert measures["class confidence"].tolist() == pytest.approx([1, (2 + math.exp(-1)) / 3, math.exp(-2)])
    assert measures["class variability"][[0, 2]].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert measures["label score, block 3"].tolist() == pytest.approx([1, (2 / 3 - 0.2) / 0.8, -0.25])
    assert measures["label bits, block 0"].tolist() == pytest.approx([1, 4 / 3, 3])  # draws of x and x + 2
    assert measures["label bits, block 3"].tolist() == pytest.approx([0, -1 / 3, -2])
    assert measures["label margin, block 0"].tolist() == pytest.approx([0, -1 / 3, -2])


def test_audit_draws_are_measured_apart():
    table = ledger(0, [1, 0], [0.5, 1.5])
    audited = replace(table, metadata=replace(table.metadata, num_audit_draws=1))
    measures = sample_measures(gather_history([audited]))
    assert measures["label bits, block 0"].tolist() == [0.5, 1.5]
    assert measures["audit label bits, block 0"].tolist() == [2.5, 3.5]
    assert measures["audit label score, block 3"].tolist() == [1, -0.25]
    assert "audit label bits, block 0" not in sample_measures(gather_history([table]))


def test_an_epoch_that_missed_a_sample_repeats_the_one_before():
    reached = [ledger(epoch, [1, 1], [1, 1]) for epoch in range(4)]
    reached[1] = ledger(1, [1, 1], [1, 1], seen=[True, False])
    measures = sample_measures(gather_history(reached))
    for name, values_N in measures.items():
        assert values_N[0] == values_N[1], name


def test_a_sample_is_not_learned_before_it_was_reached():
    tables = [ledger(0, [1, 1], [1, 1], seen=[True, False]), ledger(1, [1, 1], [1, 1])]
    assert sample_measures(gather_history(tables))["first hit"].tolist() == [0, 1]


def test_a_sample_that_was_never_reached_has_no_measure():
    history = gather_history([ledger(epoch, [1, 1], [1, 1], seen=[True, False]) for epoch in range(2)])
    assert history.seen_N.tolist() == [True, False]
    for name, values_N in sample_measures(history).items():
        assert values_N.isnan().tolist() == [False, True], name


def test_one_epoch_gives_no_dynamics():
    two = sample_measures(gather_history([ledger(0, [1], [1]), ledger(1, [1], [1])]))
    one = sample_measures(gather_history([ledger(0, [1], [1])]))
    assert set(two) - set(one) == set(DYNAMIC_MEASURES)


def test_ledgers_of_two_runs_are_refused():
    other = ledger(1, [1], [1])
    other = replace(other, metadata=replace(other.metadata, seed=1))
    with pytest.raises(LedgerError, match="epochs 0 and 1 are not of one run"):
        gather_history([ledger(0, [1], [1]), other])
    with pytest.raises(LedgerError, match="at least one"):
        gather_history([])
