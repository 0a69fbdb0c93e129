"""Per-sample scores and the memorised set."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlpheads.memorization.measures.sample_scores import memorized_set, needed_draws, sample_scores


def random_hits(num_draws: int, num_samples: int, rate: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(num_draws, num_samples, generator=torch.Generator().manual_seed(seed)) < rate


def test_scores_are_one_for_all_hits_and_zero_at_chance():
    hit_MN = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 0]])
    scores = sample_scores(hit_MN, num_labels=4)
    torch.testing.assert_close(scores.score_N, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert scores.standard_error_N[0] == 0
    assert float(scores.standard_error_N[1]) == pytest.approx(stats.sem([1, -1 / 3, -1 / 3, -1 / 3]))


def test_one_draw_has_a_score_and_no_error():
    scores = sample_scores(torch.tensor([[1, 0]]), 2)
    assert scores.score_N.tolist() == [1, -1]
    assert scores.standard_error_N.isnan().all()


def test_epochs_are_averaged_within_a_draw_so_that_repeating_them_adds_no_evidence():
    hit_MN = random_hits(6, 20, 0.4)
    once, repeated = sample_scores(hit_MN, 5), sample_scores(hit_MN.expand(10, 6, 20), 5)
    torch.testing.assert_close(once.standard_error_N, repeated.standard_error_N)
    torch.testing.assert_close(once.score_N, repeated.score_N)


@given(st.integers(1, 10**7), st.integers(2, 1000), st.sampled_from([0.01, 0.05, 0.1]), st.data())
def test_needed_draws_are_the_fewest_that_resolve(num_samples, num_labels, rate, data):
    resolved = data.draw(st.integers(1, num_samples))
    draws = needed_draws(num_samples, num_labels, resolved, rate)
    threshold = rate * resolved / num_samples
    assert num_labels**-draws <= threshold * (1 + 1e-6)
    assert draws == 1 or num_labels ** -(draws - 1) > threshold * (1 - 1e-6)


def test_needed_draws_known_values():
    assert needed_draws(5, 10) == 2  # exactly: 10^−2 = .05/5
    assert needed_draws(1_280_000, 10) == 8
    assert needed_draws(1_280_000, 10, num_resolved=12_800) == 4


@given(st.integers(3, 12), st.integers(1, 60), st.floats(0.1, 0.9), st.integers(0, 1000))
def test_adjusted_p_values_are_scipys_benjamini_hochberg(num_draws, num_samples, rate, seed):
    hit_MN = random_hits(num_draws, num_samples, rate, seed)
    found = memorized_set(hit_MN, 3)
    expected = stats.false_discovery_control(
        [stats.binomtest(int(hits), num_draws, 1 / 3, alternative="greater").pvalue for hits in hit_MN.sum(0)]
    )
    assert found.adjusted_N.tolist() == pytest.approx(expected.tolist())
    assert found.member_N is None or torch.equal(found.member_N, found.adjusted_N <= 0.05)


def test_memorised_samples_are_found_among_chance_hits():
    hit_MN = random_hits(10, 1000, 0.1)
    hit_MN[:, :50] = True
    found = memorized_set(hit_MN, 10)
    assert found.resolvable
    assert found.member_N[:50].all()
    assert found.member_N[50:].sum() <= 5
    assert found.describe() == f"{int(found.member_N.sum())} of 1000 samples memorised"


def test_false_discoveries_stay_at_the_rate():
    fractions = []
    for seed in range(100):
        hit_MN = random_hits(8, 500, 0.1, seed)
        hit_MN[:, :50] = random_hits(8, 50, 0.9, seed + 1000)
        member_N = memorized_set(hit_MN, 10).member_N
        fractions.append(float(member_N[50:].sum() / member_N.sum().clamp(min=1)))
    assert sum(fractions) / 100 <= 0.05


def test_too_few_draws_are_not_resolvable_rather_than_empty():
    found = memorized_set(random_hits(3, 1000, 0.9), 10)
    assert found.member_N is None
    assert not found.resolvable
    assert found.needed_draws == 5
    assert found.describe() == "not resolvable: needs 5 draws of the labels"
    assert memorized_set(random_hits(3, 1000, 0.9), 10, num_resolved=100).resolvable


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_scores(torch.zeros(4), 2), "must have shape"),
        (lambda: sample_scores(torch.zeros(0, 4), 2), "must have shape"),
        (lambda: memorized_set(torch.full((2, 3), 0.5), 2), "0 or 1"),
        (lambda: memorized_set(torch.full((2, 3), math.nan), 2), "0 or 1"),
        (lambda: needed_draws(10, 2, num_resolved=11), "only 10 samples"),
        (lambda: needed_draws(10, 2, rate=1.0), "rate is 1.0"),
        (lambda: memorized_set(torch.zeros(2, 3), 1), "num_labels is 1"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
