"""Which places are tapped, and how a block's output becomes one feature vector a row."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpheads.engine.model.taps import Layout, select_places


def network(num_blocks: int, closed: str = "") -> Layout:
    """A stack of blocks, each with attention, a second norm and an MLP, between a stem and a head."""
    modules = ["stem"]
    for block in range(num_blocks):
        modules += [f"blocks.{block}.attn", f"blocks.{block}.norm2", f"blocks.{block}.mlp", f"blocks.{block}"]
    ranks = {name: float(rank) for rank, name in enumerate([*modules, "blocks", "head"])}
    return Layout(
        block_ranks=[ranks[f"blocks.{block}"] for block in range(num_blocks)],
        module_ranks=ranks,
        attention_ranks={} if closed else {i: ranks[f"blocks.{i}.norm2"] - 0.5 for i in range(num_blocks)},
        closed=closed,
    )


def names(spec, num_blocks):
    return [place.name for place in select_places(spec, network(num_blocks))]


def test_words():
    assert names("all", 4) == [0, 1, 2, 3]
    assert names("none", 4) == []
    assert names("inside", 2) == ["0.attn", "0.mlp", "1.attn", "1.mlp"]


def test_numbers_count_from_either_end_and_come_out_ascending():
    assert names([-1, 0, 2], 6) == [0, 2, 5]
    assert names((5,), 6) == [5]


def test_places_of_every_kind_come_out_in_the_order_of_depth():
    given = ["head", 1, "stem", "0.attn", "blocks.1.attn", 0, "1.attn", "blocks.0.norm2"]
    assert names(given, 2) == ["stem", "0.attn", "blocks.0.norm2", 0, "blocks.1.attn", "1.attn", 1, "head"]
    assert names(["-2.mlp"], 2) == ["0.mlp"]


@given(st.data(), st.integers(1, 30))
def test_any_choice_of_blocks_is_found_whichever_end_it_is_counted_from(data, num_blocks):
    blocks = data.draw(st.sets(st.integers(0, num_blocks - 1), min_size=1))
    spec = [block - data.draw(st.sampled_from([0, num_blocks])) for block in blocks]
    assert names(spec, num_blocks) == sorted(blocks)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([12], "tap 12.*12 blocks, 0 to 11.*nearest is 11"),
        ([0, -13], "tap -13.*nearest is -12"),
        (["-13.attn"], "tap -13.*nearest is -12"),
        ([-1, 11], "one place twice, as 11 and as 11"),
        ([3, "3.mlp"], "one place twice, as 3 and as 3.mlp"),
        ([3, "blocks.3"], "one place twice, as 3 and as blocks.3"),
        ([], "empty list of taps.*'none'"),
        ("al", "unknown taps 'al'.*nearest: all"),
        ("None", "unknown taps 'None'.*nearest: none"),
        ("3", "unknown taps '3'"),
        ([True], "whole number or text, got True"),
        ([1.0], "whole number or text, got 1.0"),
        (["3.attention"], "no place '3.attention'.*nearest: 3.attn"),
        (["blocks.3.atn"], "no place 'blocks.3.atn'.*nearest: blocks.3.attn"),
        ([""], "no place ''"),
    ],
)
def test_bad_taps_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        select_places(spec, network(12))


def test_blocks_that_are_closed_say_why():
    with pytest.raises(ValueError, match="tap 1.attn: made of convolutions; use 1"):
        select_places(["1.attn"], network(3, closed="made of convolutions"))
