"""Which blocks are tapped, and how their output becomes one feature vector a row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpheads.memorization.taps import pool_tokens, select_taps


def test_words():
    assert select_taps("all", 4) == (0, 1, 2, 3)
    assert select_taps("none", 4) == ()


def test_numbers_count_from_either_end_and_come_out_ascending():
    assert select_taps([-1, 0, 2], 6) == (0, 2, 5)
    assert select_taps((5,), 6) == (5,)


@given(st.data(), st.integers(1, 30))
def test_any_choice_of_blocks_is_found_whichever_end_it_is_counted_from(data, num_blocks):
    blocks = data.draw(st.sets(st.integers(0, num_blocks - 1), min_size=1))
    spec = [block - data.draw(st.sampled_from([0, num_blocks])) for block in blocks]
    assert select_taps(spec, num_blocks) == tuple(sorted(blocks))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([12], "tap 12.*12 blocks, 0 to 11.*nearest is 11"),
        ([0, -13], "tap -13.*nearest is -12"),
        ([-1, 11], "block 11 twice, as -1 and as 11"),
        ([3, 3], "block 3 twice"),
        ([], "empty list of taps.*'none'"),
        ("al", "unknown taps 'al'.*did you mean 'all'"),
        ("None", "unknown taps 'None'.*did you mean 'none'"),
        ("3", "unknown taps '3'"),
        ([True], "whole number, got True"),
        ([1.0], "whole number, got 1.0"),
    ],
)
def test_bad_taps_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        select_taps(spec, 12)


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="at least 1 block"):
        select_taps("all", 0)


def test_pooling():
    tokens_BLD, prefix_BPD = torch.randn(2, 6, 5), torch.randn(2, 2, 5)
    assert torch.equal(pool_tokens(tokens_BLD, prefix_BPD, "token"), prefix_BPD[:, 0])
    assert torch.equal(pool_tokens(tokens_BLD, prefix_BPD, "mean"), tokens_BLD.mean(1))
    maps_BDHW = tokens_BLD.transpose(1, 2).reshape(2, 5, 2, 3)
    torch.testing.assert_close(pool_tokens(maps_BDHW, None, "mean"), tokens_BLD.mean(1))


@pytest.mark.parametrize("prefix_BPD", [None, torch.zeros(2, 0, 5)])
def test_the_class_token_is_missed_by_name(prefix_BPD):
    with pytest.raises(ValueError, match="no prefix tokens: use 'mean'"):
        pool_tokens(torch.zeros(2, 6, 5), prefix_BPD, "token")


def test_other_pools_and_shapes_are_refused():
    with pytest.raises(ValueError, match="unknown pool 'max': use one of token, mean"):
        pool_tokens(torch.zeros(2, 6, 5), None, "max")
    with pytest.raises(ValueError, match=r"shape \(2, 5\)"):
        pool_tokens(torch.zeros(2, 5), None, "mean")
