"""Spearman's correlation: exact cases, the coverage of its interval, and what it refuses."""

import math

import numpy as np
import pytest
import torch

from rlpheads.memorization.measures.rank_correlation import spearman


def test_monotone_and_constant():
    assert spearman(torch.arange(9.0), torch.arange(9.0) ** 3).rho == 1
    assert spearman(torch.arange(9.0), -torch.arange(9.0)).rho == -1
    assert all(map(math.isnan, spearman(torch.arange(9.0), torch.ones(9))))
    assert all(map(math.isnan, spearman(torch.ones(0), torch.ones(0))))
    assert spearman(torch.arange(3.0), torch.tensor([1.0, 3.0, 2.0]))[:3] == (0.5, -1, 1)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_interval_covers_the_rank_correlation_of_normal_samples(rho):
    """A bivariate normal's rank correlation is 6/π · asin(r/2); 2,000 cases of 60 samples."""
    rng, r = np.random.default_rng(1), 2 * math.sin(math.pi * rho / 6)
    covered = 0
    for _ in range(2000):
        x, noise = rng.normal(size=(2, 60))
        found = spearman(torch.from_numpy(x), torch.from_numpy(r * x + math.sqrt(1 - r * r) * noise))
        covered += found.low <= rho <= found.high
    assert 0.93 < covered / 2000 < 0.97


def test_nan_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match="second_N holds nan"):
        spearman(torch.arange(3.0), torch.tensor([1.0, math.nan, 2.0]))
    with pytest.raises(ValueError, match="must be"):
        spearman(torch.arange(3.0), torch.arange(4.0))
