"""Parts of a split: the right number of each class, the right images, nested, and planted into like a whole split."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpheads.loaders.contract.errors import DatasetError, ImageReadError
from rlpheads.loaders.sources.canary_source import CanarySpec, insert_canaries
from rlpheads.loaders.sources.digits import open_digits
from rlpheads.loaders.sources.image_folder import ImageFolderSource, scan_image_folder
from rlpheads.loaders.sources.subset import take_subset

TRAIN = open_digits(seed=0)[0]
COUNTS = np.bincount(TRAIN.manifest.targets)


def test_the_whole_subset_is_the_source_itself():
    assert take_subset(TRAIN, 1.0, None, 0) is TRAIN


@settings(max_examples=20)
@given(st.floats(0.001, 0.999), st.integers(0, 2**63 - 1))
def test_a_fraction_of_every_class_is_kept_with_its_images(fraction, seed):
    part = take_subset(TRAIN, fraction, None, seed)
    assert np.bincount(part.manifest.targets).tolist() == np.ceil(np.round(fraction * COUNTS, 6)).astype(int).tolist()
    place = {name: index for index, name in enumerate(TRAIN.manifest.names())}
    for index, name in list(enumerate(part.manifest.names()))[:: max(1, part.manifest.num_samples // 5)]:
        assert torch.equal(part.read(index), TRAIN.read(place[name]))
        assert part.manifest.targets[index] == TRAIN.manifest.targets[place[name]]


@pytest.mark.parametrize("fraction", [5e-324, 1e-30, 1e-9])
def test_no_fraction_is_so_small_that_a_class_is_lost(fraction):
    assert np.bincount(take_subset(TRAIN, fraction, None, 0).manifest.targets).tolist() == [1] * 10


def test_each_class_has_the_same_number():
    part = take_subset(TRAIN, 1.0, 25, 0)
    assert np.bincount(part.manifest.targets).tolist() == [25] * 10


@pytest.mark.parametrize(("per_class", "imbalance", "last"), [(None, 100.0, 2), (100, 100.0, 1), (3, 1000.0, 1)])
def test_a_long_tail_falls_exponentially_and_loses_no_class(per_class, imbalance, last):
    kept = np.bincount(take_subset(TRAIN, 1.0, per_class, 0, imbalance=imbalance).manifest.targets)
    whole = COUNTS if per_class is None else np.full(10, per_class)
    assert (kept[0], kept[-1]) == (whole[0], last)
    exact = whole * imbalance ** (-np.arange(10) / 9)
    assert ((kept >= exact - 1e-6) & (kept < exact + 1)).all()
    tail = set(take_subset(TRAIN, 1.0, per_class, 0, imbalance=imbalance).manifest.names())
    assert tail < set(take_subset(TRAIN, 1.0, None, 0).manifest.names())


def test_less_lies_within_more_and_another_seed_takes_others():
    small, large, other = (
        set(take_subset(TRAIN, fraction, None, seed).manifest.names())
        for fraction, seed in ((0.05, 1), (0.3, 1), (0.05, 2))
    )
    assert small < large
    assert small != other


def test_canaries_and_noise_go_into_a_subset():
    part = take_subset(TRAIN, 0.5, None, 0)
    planted = insert_canaries(part, CanarySpec(label_noise=0.2, mislabelled=3, repeated=2, near_duplicates=2), 0)
    assert planted.manifest.num_samples > part.manifest.num_samples
    assert torch.equal(planted.read(part.manifest.num_samples), part.read(int(planted.copied[0])))


def test_too_many_of_a_class_or_both_ways_are_refused():
    with pytest.raises(DatasetError, match=r"cannot give 1000 samples of every class: '\d' has 1"):
        take_subset(TRAIN, 1.0, 1000, 0)
    with pytest.raises(DatasetError, match="not both"):
        take_subset(TRAIN, 0.5, 10, 0)


def test_an_unreadable_image_is_named_by_its_index_in_the_subset(write_tree):
    tree = write_tree({"cat": ["a.png", "b.png", "c.png"], "dog": ["d.png", "e.png"]})
    source = ImageFolderSource(scan_image_folder(tree, "train"))
    part = take_subset(source, 0.4, None, 0)
    index = part.manifest.num_samples - 1
    part.manifest.path(index).write_bytes(b"")
    with pytest.raises(ImageReadError) as caught:
        part.read(index)
    assert caught.value.index == index
    assert caught.value.path == str(part.manifest.path(index))


def test_pairwise_noise_gives_the_next_class():
    planted = insert_canaries(TRAIN, CanarySpec(label_noise=0.3, noise_kind="pairwise"), 0)
    wrong = planted.truth.index
    assert len(wrong) == round(0.3 * TRAIN.manifest.num_samples)
    assert (planted.manifest.targets[wrong] == (TRAIN.manifest.targets[wrong] + 1) % 10).all()
    symmetric = insert_canaries(TRAIN, CanarySpec(label_noise=0.3), 0)
    assert planted.truth.index.tolist() == symmetric.truth.index.tolist()
