"""Held-out samples: stratified, keyed by seed and name, and stable when the dataset grows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.sources.splits import stratified_split

counts = st.lists(st.integers(2, 40), min_size=1, max_size=8)
fractions = st.floats(0.01, 0.99)


def manifest_of(names_by_class: list[list[str]]) -> Manifest:
    names = [f"{label}/{name}".encode() for label, names in enumerate(names_by_class) for name in sorted(names)]
    targets = np.repeat(np.arange(len(names_by_class)), [len(names) for names in names_by_class])
    classes = tuple(str(label) for label in range(len(names_by_class)))
    return Manifest.from_columns(names, targets, [1] * len(names), classes=classes, root=None, split="all")


def numbered(counts: list[int]) -> list[list[str]]:
    return [[f"{number:03d}" for number in range(count)] for count in counts]


@given(counts=counts, fraction=fractions, seed=st.integers(0, 5))
def test_every_class_is_on_both_sides_in_proportion(counts, fraction, seed):
    whole = manifest_of(numbered(counts))
    train, val = stratified_split(whole, fraction, seed)
    assert sorted(train.names() + val.names()) == sorted(whole.names())
    assert train.names() == sorted(train.names())
    assert (train.split, val.split) == ("train", "val")
    held_out = np.bincount(val.targets, minlength=len(counts))
    assert (held_out >= 1).all()
    assert (held_out <= np.array(counts) - 1).all()
    exact = np.clip(fraction * np.array(counts), 1, np.array(counts) - 1)
    assert (np.abs(held_out - exact) <= 1).all()


@given(counts=counts, fraction=fractions, grown=st.integers(0, 7), seed=st.integers(0, 3))
def test_a_new_file_moves_at_most_one_other_of_any_class(counts, fraction, grown, seed):
    before = numbered(counts)
    after = [list(names) for names in before]
    after[grown % len(counts)].append("new")
    held_out = [set(stratified_split(manifest_of(names), fraction, seed)[1].names()) for names in (before, after)]
    moved = {name for name in held_out[0] ^ held_out[1] if not name.endswith(b"new")}
    for label in range(len(counts)):
        assert len([name for name in moved if name.startswith(f"{label}/".encode())]) <= 1


def test_the_seed_chooses_and_nothing_else():
    whole = manifest_of(numbered([50, 50]))
    held_out = {seed: stratified_split(whole, 0.3, seed)[1] for seed in (0, 1)}
    assert held_out[0] != held_out[1]
    assert stratified_split(whole, 0.3, 0)[1] == held_out[0]


def test_a_larger_fraction_holds_out_more_of_the_same():
    whole = manifest_of(numbered([60, 30]))
    small, large = (set(stratified_split(whole, fraction, 0)[1].names()) for fraction in (0.1, 0.4))
    assert small < large


@pytest.mark.parametrize(
    ("counts", "fraction", "held_out"), [([100], 0.07, 7), ([10, 10, 10], 0.25, 8), ([2, 2], 0.01, 2)]
)
def test_the_total_is_the_fraction_rounded_up(counts, fraction, held_out):
    assert stratified_split(manifest_of(numbered(counts)), fraction, 0)[1].num_samples == held_out


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(DatasetError, match=r"must be in \(0, 1\)"):
        stratified_split(manifest_of(numbered([5, 5])), fraction, 0)


def test_a_class_of_one_cannot_be_split():
    with pytest.raises(DatasetError, match=r"class '1' has 1 image\(s\)"):
        stratified_split(manifest_of(numbered([5, 1])), 0.2, 0)
