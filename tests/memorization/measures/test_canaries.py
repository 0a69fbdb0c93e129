"""Canaries by known answers: what is planted in the measures is found, and what is not is not."""

import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from rlpheads.memorization.measures.canaries import auc_by_kind, canary_auc, correlate_with_copies
from rlpheads.memorization.measures.sample_dynamics import learned_for_good_epoch, noisy_label_auc
from rlpheads.memorization.measures.sample_history import DYNAMIC_MEASURES, gather_history, sample_measures
from rlpheads.memorization.records.canary_file import Canaries, CanaryError, read_canaries, write_canaries
from rlpheads.memorization.records.ledger_file import SEEN, UNSEEN, LedgerError, LedgerMetadata, LedgerTable

METADATA = LedgerMetadata("f" * 64, 0, 5, (0, 3), 2, epoch=0, phase="running", split="train", step=9)


def canaries_of(*rows: tuple[int, str, int]) -> Canaries:
    index, kind, original = zip(*rows, strict=True)
    return Canaries("f" * 64, np.array(index), np.array(kind), np.array(original), np.zeros(len(rows), dtype=np.int64))


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
        hit=np.broadcast_to(hits & seen, (2, 2, num_samples)),
        bits=np.stack([np.stack([floats, floats + 2]), np.stack([-floats, -floats])]),
        margin=np.broadcast_to(-floats, (2, 2, num_samples)),
    )


class TestSeparation:
    def test_perfect_reversed_and_tied(self):
        low, high = torch.arange(20.0), torch.arange(20.0, 30.0)
        assert canary_auc(high, low).auc == 1
        assert canary_auc(low, high).auc == 0
        assert canary_auc(torch.ones(9), torch.ones(40)).auc == 0.5

    def test_perfect_separation_does_not_claim_certainty(self):
        found = canary_auc(torch.ones(30) * 5, torch.arange(5.0).repeat(280))
        assert (found.auc, found.high) == (1, 1)
        assert 0.95 < found.low < 0.98  # 117 successes of 117: Wilson

    @given(
        st.lists(st.integers(0, 6), min_size=2, max_size=12),
        st.lists(st.integers(0, 6), min_size=2, max_size=12),
    )
    def test_is_the_noisy_label_auc_inside_its_interval(self, canary, ordinary):
        found = canary_auc(torch.tensor(canary), torch.tensor(ordinary))
        is_canary = torch.arange(len(canary) + len(ordinary)) < len(canary)
        assert found.auc == pytest.approx(float(noisy_label_auc(torch.tensor(canary + ordinary), is_canary)), abs=1e-12)
        assert 0 <= found.low <= found.auc + 1e-9
        assert found.auc - 1e-9 <= found.high <= 1

    @pytest.mark.parametrize("auc", [0.5, 0.8, 0.98])
    def test_covers_the_truth(self, auc):
        """At least 93 % of 500 simulated cases less 3 standard errors, and no wider than needed at .5 and .8."""
        rng = np.random.default_rng(7)
        found = [
            canary_auc(
                torch.from_numpy(rng.normal(math.sqrt(2) * norm.ppf(auc), 1, 30)),
                torch.from_numpy(rng.normal(0, 1, 200)),
            )
            for _ in range(500)
        ]
        covered = np.mean([each.low <= auc <= each.high for each in found])
        assert covered > 0.93 - 3 * math.sqrt(0.07 * 0.93 / 500)
        if auc < 0.9:
            assert covered < 0.98

    def test_copies_of_one_image_widen_the_interval(self):
        generator = torch.Generator().manual_seed(0)
        image_P = torch.arange(20).repeat_interleave(8)
        canary_P = torch.randn(20, generator=generator)[image_P] + 0.01 * torch.randn(160, generator=generator)
        ordinary_Q = torch.randn(500, generator=generator)
        alone, clustered = canary_auc(canary_P, ordinary_Q), canary_auc(canary_P, ordinary_Q, image_P)
        assert alone.auc == clustered.auc
        assert 2 < (clustered.high - clustered.low) / (alone.high - alone.low) < math.sqrt(8)

    def test_one_image_says_nothing(self):
        found = canary_auc(torch.ones(5), torch.zeros(9), torch.full((5,), 7))
        assert found == (1, 0, 1)

    @pytest.mark.parametrize("bad", [torch.ones(0), torch.tensor([1.0, math.nan]), torch.ones(2, 2)])
    def test_refuses_what_has_no_rank(self, bad):
        with pytest.raises(ValueError, match="canary_P must have one dimension"):
            canary_auc(bad, torch.ones(3))


class TestKinds:
    CANARIES = canaries_of((0, "noisy", 0), (1, "noisy", 1), (4, "mislabelled", 4), (5, "mislabelled", 5))

    def test_each_kind_is_compared_with_samples_of_no_kind(self):
        values_N = torch.tensor([9, 8, 5, 5, 0, 5, 5, 5.0])
        found = auc_by_kind({"loss": values_N}, self.CANARIES)["loss"]
        assert found["noisy"].auc == 1
        assert found["mislabelled"].auc == 0.25  # one below the four ordinary samples, one tied with them

    def test_samples_without_a_value_are_left_out(self):
        values_N = torch.tensor([9, math.nan, 5, math.nan, math.nan, math.nan, 5, 5.0])
        found = auc_by_kind({"loss": values_N}, self.CANARIES)["loss"]
        assert set(found) == {"noisy"}
        assert found["noisy"].auc == 1

    def test_nothing_ordinary_leaves_nothing_to_say(self):
        assert auc_by_kind({"loss": torch.arange(2)}, canaries_of((0, "noisy", 0), (1, "noisy", 1))) == {"loss": {}}

    def test_an_index_outside_is_refused(self):
        with pytest.raises(CanaryError, match="index 5 do not fit measures of 5 samples"):
            auc_by_kind({"loss": torch.ones(5)}, self.CANARIES)


class TestCopies:
    # Three images, in the split two, three and four times; sample 0 to 2 are the originals, 3 to 8 the copies.
    ROWS = ((0, 0), (1, 1), (2, 2), (3, 0), (4, 1), (5, 1), (6, 2), (7, 2), (8, 2))
    CANARIES = canaries_of(*((index, "repeated", original) for index, original in ROWS))

    @pytest.mark.parametrize(("step", "rho"), [(1, 1), (-1, -1)])
    def test_a_measure_that_follows_the_copies(self, step, rho):
        values_N = torch.tensor([step * {0: 2, 1: 3, 2: 4}[original] for _, original in self.ROWS] + [100.0])
        assert correlate_with_copies({"m": values_N}, self.CANARIES)["m"].rho == pytest.approx(rho)

    def test_an_image_counts_once_with_its_average(self):
        values_N = torch.tensor([0, 5, 4, 10, 5, 5, 4, 4, 4.0])
        assert correlate_with_copies({"m": values_N}, self.CANARIES)["m"].rho == pytest.approx(-math.sqrt(3) / 2)

    def test_a_constant_measure_has_no_correlation(self):
        assert math.isnan(correlate_with_copies({"m": torch.ones(9)}, self.CANARIES)["m"].rho)

    def test_one_number_of_copies_has_none_either(self):
        pair = canaries_of((0, "repeated", 0), (1, "repeated", 1), (2, "repeated", 0), (3, "repeated", 1))
        assert correlate_with_copies({"m": torch.arange(4)}, pair) == {}

    def test_copies_that_were_not_seen_are_not_averaged(self):
        values_N = torch.tensor([1, 2, 3, math.nan, 2, math.nan, 3, 3, 3.0])
        assert correlate_with_copies({"m": values_N}, self.CANARIES)["m"].rho == 1


class TestHistory:
    def test_measures_by_hand(self):
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

    def test_audit_draws_are_measured_apart(self):
        table = ledger(0, [1, 0], [0.5, 1.5])
        audited = replace(table, metadata=replace(table.metadata, num_audit_draws=1))
        measures = sample_measures(gather_history([audited]))
        assert measures["label bits, block 0"].tolist() == [0.5, 1.5]
        assert measures["audit label bits, block 0"].tolist() == [2.5, 3.5]
        assert measures["audit label score, block 3"].tolist() == [1, -0.25]
        assert "audit label bits, block 0" not in sample_measures(gather_history([table]))

    def test_an_epoch_that_did_not_reach_a_sample_changes_nothing_of_it(self):
        reached = [ledger(epoch, [1, 1], [1, 1]) for epoch in range(4)]
        reached[1] = ledger(1, [1, 1], [1, 1], seen=[True, False])
        measures = sample_measures(gather_history(reached))
        for name, values_N in measures.items():
            assert values_N[0] == values_N[1], name

    def test_a_sample_is_not_learned_before_it_was_reached(self):
        tables = [ledger(0, [1, 1], [1, 1], seen=[True, False]), ledger(1, [1, 1], [1, 1])]
        assert sample_measures(gather_history(tables))["first hit"].tolist() == [0, 1]

    def test_a_sample_that_was_never_reached_has_no_measure(self):
        history = gather_history([ledger(epoch, [1, 1], [1, 1], seen=[True, False]) for epoch in range(2)])
        assert history.seen_N.tolist() == [True, False]
        for name, values_N in sample_measures(history).items():
            assert values_N.isnan().tolist() == [False, True], name

    def test_one_epoch_gives_no_dynamics(self):
        two = sample_measures(gather_history([ledger(0, [1], [1]), ledger(1, [1], [1])]))
        one = sample_measures(gather_history([ledger(0, [1], [1])]))
        assert set(two) - set(one) == set(DYNAMIC_MEASURES)

    def test_ledgers_of_two_runs_are_refused(self):
        other = ledger(1, [1], [1])
        other = replace(other, metadata=replace(other.metadata, seed=1))
        with pytest.raises(LedgerError, match="epochs 0 and 1 are not of one run"):
            gather_history([ledger(0, [1], [1]), other])
        with pytest.raises(LedgerError, match="at least one"):
            gather_history([])

    @given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=8))
    def test_learned_for_good_agrees_with_a_plain_loop(self, history):
        hit_EN = torch.tensor(history)
        expected = [next(e for e in range(len(history) + 1) if all(row[n] for row in history[e:])) for n in range(3)]
        assert learned_for_good_epoch(hit_EN).tolist() == expected


class TestFile:
    def test_round_trip(self, tmp_path):
        canaries = canaries_of((3, "noisy", 3), (7, "near_duplicate", 7), (90, "near_duplicate", 7))
        write_canaries(tmp_path / "run" / "canaries.parquet", canaries)
        read = read_canaries(tmp_path / "run" / "canaries.parquet")
        assert read.fingerprint == canaries.fingerprint
        assert read.kinds == {"noisy": 1, "near_duplicate": 2}
        for name in ("index", "kind", "original", "true_class"):
            np.testing.assert_array_equal(getattr(read, name), getattr(canaries, name))
        assert pq.read_table(tmp_path / "run" / "canaries.parquet").column_names == [
            "index",
            "kind",
            "original",
            "true_class",
        ]

    def test_what_is_no_such_file(self, tmp_path):
        path = tmp_path / "canaries.parquet"
        with pytest.raises(FileNotFoundError, match="no file of canaries"):
            read_canaries(path)
        path.write_bytes(b"PAR1 and nothing more")
        with pytest.raises(CanaryError, match="no readable Parquet file"):
            read_canaries(path)
        write_canaries(path, canaries_of((3, "noisy", 3)))
        pq.write_table(pq.read_table(path).drop_columns("kind"), path)
        with pytest.raises(CanaryError, match="of version 1"):
            read_canaries(path)
