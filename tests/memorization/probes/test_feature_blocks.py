"""Streamed blocks of features: subsets, Gaussian controls, and blocks that do not fit."""

import pytest
import torch
from audit_problems import K, gaussian, table

from rlpheads.memorization.probes.feature_blocks import GaussianFeatures, RowSubset, iterate_blocks
from rlpheads.memorization.probes.probe_heads import LeastSquaresProbe


def test_a_subset_reads_its_rows_across_blocks():
    features = gaussian(50, 3)
    rows = torch.tensor([0, 6, 7, 20, 49])
    assert torch.equal(torch.cat(list(RowSubset(list(features.split(7)), rows))), features[rows])


def test_gaussian_features_are_the_same_each_time():
    first, again = (torch.cat(list(GaussianFeatures(9000, 2, seed=3))) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (9000, 2)
    assert not torch.equal(first[:10], torch.cat(list(GaussianFeatures(9000, 2, seed=4)))[:10])


def test_an_iterator_is_refused():
    with pytest.raises(ValueError, match="more than once"):
        list(iterate_blocks(iter([gaussian(5, 2)])))


@pytest.mark.parametrize(("num_rows", "message"), [(99, "99 rows of features for 100"), (101, "more than 100")])
def test_rows_and_labels_must_match(num_rows, message):
    with pytest.raises(ValueError, match=message):
        LeastSquaresProbe()(gaussian(num_rows, 2), table(100), K)


def test_blocks_must_be_equally_wide_float_matrices():
    with pytest.raises(ValueError, match="3 wide"):
        LeastSquaresProbe()([gaussian(5, 2), gaussian(5, 3)], table(10), K)
    with pytest.raises(ValueError, match="float"):
        LeastSquaresProbe()(torch.ones(10, 2, dtype=torch.int64), table(10), K)
    with pytest.raises(ValueError, match="no rows"):
        LeastSquaresProbe()([], table(10)[:, :0], K)
