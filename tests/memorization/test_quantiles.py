"""Quantiles equal numpy's, of any shape and type."""

import numpy as np
import pytest
import torch

from rlpheads.memorization.quantiles import quantiles

LEVELS = (0.0, 0.05, 0.5, 0.95, 1.0)


@pytest.mark.parametrize("shape", [(1,), (2,), (1001,), (2, 3, 57)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_they_are_numpys(shape, dtype):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    given = values.clone()
    expected = np.quantile(values.double().numpy(), LEVELS, axis=-1)
    torch.testing.assert_close(quantiles(values, LEVELS), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
    assert torch.equal(values, given)


def test_equal_values_and_infinities_are_kept():
    values = torch.tensor([float("inf"), 1.0, 1.0, 1.0])
    assert quantiles(values, (0.0, 0.5)).tolist() == [1.0, 1.0]


def test_no_level_is_no_quantile():
    assert quantiles(torch.ones(3, 4), ()).shape == (0, 3)


@pytest.mark.parametrize(("values", "levels"), [(torch.ones(0), (0.5,)), (torch.ones(3), (1.5,))])
def test_wrong_levels_and_no_values_are_refused(values, levels):
    with pytest.raises(ValueError, match="quantiles need levels"):
        quantiles(values, levels)
