"""The calibration error accumulated batch by batch is that of the definition, for any batches and ranks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from rlpheads.memorization.measures.calibration import NUM_BINS, CalibrationBins
from rlpheads.memorization.measures.label_measures import expected_calibration_error

SAMPLES = st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60)


def by_definition(confidence_N: np.ndarray, hit_N: np.ndarray) -> float:
    """Go through the bins (low, high] one by one, as the formula is written."""
    total = 0.0
    for low in range(NUM_BINS):
        scaled_N = confidence_N * NUM_BINS
        inside_N = (scaled_N > low) & (scaled_N <= low + 1) | (low == 0) & (confidence_N == 0)
        if inside_N.any():
            share = inside_N.mean()
            total += share * abs(hit_N[inside_N].mean() - confidence_N[inside_N].mean())
    return total


@pytest.mark.long
@given(SAMPLES, st.integers(1, 7), st.integers(1, 3))
def test_batches_padding_and_ranks_change_nothing(samples, batch_size, num_ranks):
    confidence_N = torch.tensor([confidence for confidence, _ in samples])
    hit_N = torch.tensor([hit for _, hit in samples])
    ranks = [CalibrationBins() for _ in range(num_ranks)]
    for number, start in enumerate(range(0, len(samples), batch_size)):
        rows = slice(start, start + batch_size)
        padded_B = torch.cat([confidence_N[rows], torch.tensor([0.9])])
        missed_B, counted_B = torch.cat([hit_N[rows], torch.tensor([False])]), torch.arange(len(padded_B)) + 1
        ranks[number % num_ranks].add(padded_B, missed_B, counted_B < len(padded_B))
    merged = CalibrationBins()
    merged.gap_Q = torch.stack([rank.gap_Q for rank in ranks]).sum(0)
    expected = by_definition(confidence_N.double().numpy(), hit_N.numpy())
    assert float(merged.error(len(samples))) == pytest.approx(expected, abs=1e-12)
    assert float(expected_calibration_error(confidence_N, hit_N)) == pytest.approx(expected, abs=1e-12)


def test_many_samples_are_taken_at_once():
    confidence_N = torch.rand(2**16 + 3, generator=torch.Generator().manual_seed(0))
    hit_N = torch.rand(2**16 + 3, generator=torch.Generator().manual_seed(1)) < confidence_N**2
    expected = by_definition(confidence_N.double().numpy(), hit_N.numpy())
    assert expected > 0.1
    assert float(expected_calibration_error(confidence_N, hit_N)) == pytest.approx(expected, abs=1e-12)


def test_adding_a_batch_reads_nothing_on_the_host():
    """Fake tensors have no values: anything that would wait for one fails."""
    with FakeTensorMode():
        bins = CalibrationBins()
        bins.add(torch.rand(8), torch.rand(8) > 0.5, torch.arange(8) < 6)
        assert bins.error(6).shape == ()


def test_no_samples_or_bins_are_refused():
    with pytest.raises(ValueError, match="num_samples is 0"):
        CalibrationBins().error(0)
    with pytest.raises(ValueError, match="num_bins is 0"):
        CalibrationBins(0)
