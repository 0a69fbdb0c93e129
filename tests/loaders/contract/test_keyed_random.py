"""Random numbers on the device: the host's own, hash for hash, and of the right distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from rlpheads.loaders.contract.hashing import hash64, stream_key
from rlpheads.loaders.contract.keyed_random import KeyedStream, normals, uniforms

INDICES = st.lists(st.integers(-1, 2**62), min_size=1, max_size=5)


@given(st.integers(0, 2**63 - 1), st.text(max_size=8), st.integers(0, 1000), INDICES, st.integers(1, 30))
def test_the_numbers_equal_those_of_the_host(seed, stream, epoch, indices, num_draws):
    index_B = np.array(indices)
    theirs = uniforms(seed, epoch, index_B, num_draws, stream=stream)
    ours = KeyedStream(seed, stream).uniforms(epoch, torch.from_numpy(index_B), num_draws=num_draws)
    assert ours.dtype == torch.float64
    np.testing.assert_array_equal(ours.numpy(), theirs)


@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), INDICES)
def test_a_pairs_word_equals_the_hash_of_both(seed, epoch, indices):
    first = np.array(indices)
    second = first[::-1].copy()
    ours = KeyedStream(seed, "pair").words(epoch, torch.from_numpy(first), torch.from_numpy(second))
    theirs = hash64(seed, stream_key("pair"), epoch, first, second)
    np.testing.assert_array_equal(ours.numpy().view(np.uint64), theirs)


def test_more_draws_only_add_columns():
    stream, index_B = KeyedStream(3, "noise"), torch.arange(50)
    few, many = stream.uniforms(2, index_B, num_draws=3), stream.uniforms(2, index_B, num_draws=9)
    assert torch.equal(few, many[:, :3])


@pytest.mark.parametrize("num_draws", [1, 2, 7])
def test_normal_numbers_are_normal(num_draws):
    drawn = KeyedStream(0, "noise").normals(0, torch.arange(40_000), num_draws=num_draws)
    assert drawn.shape == (40_000, num_draws)
    assert drawn.dtype == torch.float32
    assert drawn.isfinite().all()
    for column in drawn.T.numpy():
        assert stats.kstest(column, "norm").pvalue > 1e-3
    if num_draws > 1:
        correlation = np.corrcoef(drawn.T.numpy()) - np.eye(num_draws)
        assert np.abs(correlation).max() < 5 / np.sqrt(40_000)


@pytest.mark.parametrize("word", [0, -1, 2**63 - 1, -(2**63), 0x80000000, 0x7FFFFFFF, 0xFFFFFE00FFFFFE00 - 2**64])
def test_the_outermost_normal_numbers_are_finite(monkeypatch, word):
    stream = KeyedStream(0, "noise")
    monkeypatch.setattr(stream, "bits", lambda *_, num_draws: torch.full((1, num_draws), word))
    drawn = stream.normals(0, torch.zeros(1, dtype=torch.int64), num_draws=4)
    assert float(drawn.abs().max()) < 5.5


def test_nothing_is_saved_and_nothing_waits_for_the_device():
    assert not KeyedStream(0, "noise").state_dict()
    with FakeTensorMode():
        stream, index_B = KeyedStream(0, "noise"), torch.arange(4)
        assert stream.normals(1, index_B, num_draws=5).shape == (4, 5)


@pytest.mark.parametrize("num_draws", [1, 2, 5])
def test_normal_numbers_of_the_host_are_those_of_the_device(num_draws):
    index_B = torch.arange(100) * 31 - 1
    device = KeyedStream(3, "noise").normals(7, index_B, num_draws=num_draws)
    assert np.array_equal(normals(3, 7, index_B.numpy(), num_draws, stream="noise"), device.numpy())
