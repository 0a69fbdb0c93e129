"""Paired p-values and Holm's correction: by hand, against SciPy, and the error of a whole family."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from rlpheads.memorization.measures.multiplicity import holm_adjusted, paired_p_value


def test_paired_p_value_is_students():
    differences = torch.tensor([0.1, 0.4, -0.2, 0.5])
    assert paired_p_value(differences) == pytest.approx(stats.ttest_1samp(differences.numpy(), 0).pvalue, rel=1e-6)
    assert math.isnan(paired_p_value(torch.tensor([0.3])))
    assert (paired_p_value(torch.zeros(3)), paired_p_value(torch.ones(3))) == (1, 0)


def test_holm_by_hand():
    """.01·4, .03·2 raised to what came before it (.02·3), .04·1 likewise."""
    assert holm_adjusted([0.04, 0.01, math.nan, 0.02, 0.03]) == pytest.approx(
        [0.06, 0.04, math.nan, 0.06, 0.06], nan_ok=True
    )
    assert holm_adjusted([]) == []
    assert holm_adjusted([0.9, 0.8]) == [1, 1]
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        holm_adjusted([1.5])


def test_a_family_errs_once_in_twenty():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        pairs = torch.from_numpy(rng.normal(size=(12, 5)))
        wrong += min(holm_adjusted([paired_p_value(differences) for differences in pairs])) < 0.05
    assert wrong / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert wrong > 5
