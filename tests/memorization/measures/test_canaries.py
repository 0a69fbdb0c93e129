"""Canaries by known answers: AUC, its interval, and the correlation with the number of copies."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from rlpheads.memorization.measures.canaries import auc_by_kind, canary_auc, correlate_with_copies
from rlpheads.memorization.measures.sample_dynamics import noisy_label_auc
from rlpheads.memorization.records.canary_file import Canaries, CanaryError


def canaries_of(*rows: tuple[int, str, int]) -> Canaries:
    index, kind, original = zip(*rows, strict=True)
    return Canaries("f" * 64, np.array(index), np.array(kind), np.array(original), np.zeros(len(rows), dtype=np.int64))


class TestCanaryAUC:
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

    def test_one_image_has_the_whole_unit_interval(self):
        found = canary_auc(torch.ones(5), torch.zeros(9), torch.full((5,), 7))
        assert found == (1, 0, 1)

    @pytest.mark.parametrize("bad", [torch.ones(0), torch.tensor([1.0, math.nan]), torch.ones(2, 2)])
    def test_empty_and_nan_values_are_refused(self, bad):
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

    def test_without_ordinary_samples_there_is_no_auc(self):
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
