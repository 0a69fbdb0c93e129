"""The sum over the bits of weights shows every change of a number, of any type."""

import pytest
import torch

from rlpheads.engine.gauges.replicas import ReplicaComparison, bit_sum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_number_that_differs_shows(dtype):
    weights = [torch.randn(33, 7, generator=torch.Generator().manual_seed(0)).to(dtype), torch.ones(5, dtype=dtype)]
    before = int(bit_sum(weights))
    assert before == int(bit_sum([weight.clone() for weight in weights]))
    weights[0][3, 4] = torch.nextafter(weights[0][3, 4].float(), torch.tensor(9.0)).to(dtype) + 1
    assert int(bit_sum(weights)) != before
    weights[0][3, 4] = -0.0
    negative = int(bit_sum(weights))
    weights[0][3, 4] = 0.0
    assert int(bit_sum(weights)) != negative


def test_a_rank_alone_differs_from_nobody(launched):
    comparison = ReplicaComparison(world_size=1)
    assert comparison.finish() is None
    comparison.begin(3, {"backbone": [torch.ones(4)]})
    assert comparison.finish() == (3, {})
    assert comparison.finish() is None


def test_where_nothing_is_replicated_there_is_nothing_to_compare(launched):
    comparison = ReplicaComparison(world_size=1)
    comparison.begin(3, {})
    assert comparison.finish() is None
