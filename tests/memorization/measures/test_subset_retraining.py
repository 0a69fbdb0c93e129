"""Subset retraining by known answers: samples that are memorised by construction, and simulated networks."""

import math

import pytest
import torch

from rlpheads.memorization.measures.subset_retraining import (
    score_agreement,
    share_falling,
    subset_memorization,
    truth_reliability,
)


def simulated(num_networks: int, inside_N: torch.Tensor, outside_N: torch.Tensor, seed: int = 0):
    """Networks that get a sample right with one probability if it was in their subset, and another if not."""
    generator = torch.Generator().manual_seed(seed)
    inside_RN = torch.rand(num_networks, len(inside_N), generator=generator) < 0.7
    hit_RN = torch.rand(inside_RN.shape, generator=generator) < torch.where(inside_RN, inside_N, outside_N)
    return hit_RN, inside_RN


def test_two_samples_by_hand():
    """The first is right just where it was trained on, the second everywhere, the third was in every subset."""
    hit_RN = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 0], [0, 1, 1]])
    inside_RN = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 0, 1], [0, 0, 1]])
    found = subset_memorization(hit_RN, inside_RN)
    assert found.value_N[:2].tolist() == [1, 0]
    assert math.isnan(found.value_N[2])
    assert math.isnan(found.standard_error_N[2])
    assert found.inside_N.tolist() == [1, 1, 0.75]
    # (2 + 1)/(2 + 2) of the two inside, (0 + 1)/(2 + 2) of the two outside
    assert float(found.standard_error_N[0]) == pytest.approx(math.sqrt(2 * 0.75 * 0.25 / 2))


def test_simulated_networks_give_their_memorisation_within_its_error():
    inside_N, outside_N = torch.linspace(0.5, 1, 2000), torch.linspace(0.5, 0, 2000)
    found = subset_memorization(*simulated(200, inside_N, outside_N))
    z_N = (found.value_N - (inside_N - outside_N)) / found.standard_error_N
    assert 0.9 < float(z_N.std()) < 1.05
    assert 0.93 < float((z_N.abs() < 1.96).double().mean()) < 0.97


def test_reliability_bounds_what_a_perfect_score_reaches():
    """The true memorisation correlates with its estimate by about the root of the estimate's reliability."""
    inside_N = torch.full((3000,), 0.9)
    outside_N = 0.9 - 0.8 * torch.rand(3000, generator=torch.Generator().manual_seed(1))
    hit_RN, inside_RN = simulated(40, inside_N, outside_N)
    reached = score_agreement(inside_N - outside_N, subset_memorization(hit_RN, inside_RN).value_N).correlation.rho
    assert reached == pytest.approx(math.sqrt(truth_reliability(hit_RN, inside_RN)), abs=0.04)
    assert math.isnan(truth_reliability(hit_RN[:3], inside_RN[:3]))


def test_agreement_with_memorised_samples():
    truth_N = torch.tensor([0.0, 0.1, 0.3, 0.9, math.nan])
    found = score_agreement(torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0]), truth_N)
    assert (found.correlation.rho, found.auc.value) == (1, 1)
    assert score_agreement(-torch.arange(5.0), truth_N).auc.value == 0
    assert math.isnan(score_agreement(torch.arange(5.0), torch.zeros(5)).auc.value)
    with pytest.raises(ValueError, match="must be"):
        score_agreement(torch.arange(4.0), truth_N)


def test_share_of_the_samples_that_fall():
    found = share_falling(torch.zeros(100), torch.cat([-torch.ones(60), torch.ones(20), torch.zeros(20)]))
    assert found.value == 0.75
    assert 0.63 < found.low < 0.66
    assert math.isnan(share_falling(torch.zeros(3), torch.zeros(3)).value)


@pytest.mark.parametrize(
    ("hits", "inside", "message"),
    [
        (torch.ones(0, 3), torch.ones(0, 3), "must be"),
        (torch.ones(2, 3), torch.ones(3, 2), "must be"),
        (torch.full((2, 3), 0.5), torch.ones(2, 3), "hit_RN holds"),
        (torch.ones(2, 3), torch.full((2, 3), 2.0), "inside_RN holds"),
    ],
)
def test_what_no_networks_say_is_refused(hits, inside, message):
    with pytest.raises(ValueError, match=message):
        subset_memorization(hits, inside)
