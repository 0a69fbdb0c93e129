"""The hash is splitmix64, in NumPy and in torch alike, and can be inverted."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpheads.loaders.contract.hashing import (
    absorb,
    absorb_tensor,
    absorbed_words,
    hash64,
    mix64,
    mix64_tensor,
    unmix64,
)

WORDS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20).map(lambda words: np.array(words, dtype=np.uint64))


def test_the_hash_is_splitmix64():
    """The first number of the reference generator from state 0."""
    assert hash64(0) == 0xE220A8397B1DCDAF


@given(WORDS)
def test_mixing_is_undone_by_its_inverse(words):
    np.testing.assert_array_equal(unmix64(mix64(words)), words)
    state = hash64(3)
    np.testing.assert_array_equal(absorbed_words(state, absorb(state, words)), words)


@given(WORDS)
def test_torch_computes_the_same_bits(words):
    signed = torch.from_numpy(words.view(np.int64))
    np.testing.assert_array_equal(mix64_tensor(signed).numpy().view(np.uint64), mix64(words))
    np.testing.assert_array_equal(absorb_tensor(signed, signed).numpy().view(np.uint64), absorb(words, words))
