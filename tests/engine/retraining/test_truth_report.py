"""Trends over the size of the network: which way a score points is what its correlations with the truth say."""

import pytest
import torch

from rlpheads.engine.retraining.subset_training import SubsetNetworks
from rlpheads.engine.retraining.truth_report import RunTruth, judge_scores, width_trends


def run_of(width: int, memorized_N: torch.Tensor, scores: dict[str, torch.Tensor]) -> RunTruth:
    """A run whose first images are told right only by the networks that saw them."""
    generator = torch.Generator().manual_seed(width)
    inside_RN = torch.rand(64, len(memorized_N), generator=generator) < 0.7
    hit_RN = inside_RN | (torch.rand(inside_RN.shape, generator=generator) > memorized_N)
    return judge_scores("run", width, SubsetNetworks(0, inside_RN, hit_RN, torch.zeros(inside_RN.shape)), scores)


@pytest.mark.parametrize(
    ("signs", "falls_as_truth"),
    [((1, 1), False), ((-1, -1), True), ((0, 1), False), ((0, 0), None), ((1, -1), None)],
)
def test_a_score_that_falls_while_the_truth_rises(signs, falls_as_truth):
    """Signs of the score's correlation with the truth, by network; 0: it has nothing to do with it."""
    memory_N = torch.linspace(0, 0.4, 400)
    noise_N = torch.rand(400, generator=torch.Generator().manual_seed(0)) * 0.4
    runs = []
    for number, sign in enumerate(signs):
        score_N = {1: memory_N, -1: -memory_N, 0: noise_N}[sign] - 2 * number
        runs.append(run_of(10**number, memory_N + 0.5 * number, {"score": score_N}))
    trend = width_trends(runs)["score"]
    assert trend.falling.value == 1
    assert trend.falls_as_truth is falls_as_truth
