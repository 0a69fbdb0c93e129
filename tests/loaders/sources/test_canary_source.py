"""Planted samples: the same ones always, the right number, the right class and image, and nothing else touched."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.canary_source import CanarySource, CanarySpec, insert_canaries
from rlpheads.loaders.sources.datasets import open_dataset
from rlpheads.loaders.sources.digits import open_digits

TRAIN = open_digits(seed=0)[0]
NUM_TRAIN = TRAIN.manifest.num_samples
ALL_KINDS = CanarySpec(label_noise=0.2, mislabelled=30, repeated=7, repeats=(2, 4, 8), near_duplicates=5)


def planted(spec: CanarySpec, seed: int = 3) -> CanarySource:
    source = insert_canaries(TRAIN, spec, seed)
    assert isinstance(source, CanarySource)
    return source


def indices(source: CanarySource, kind: str) -> list[int]:
    return source.truth.index[source.truth.kind == kind].tolist()


@pytest.mark.parametrize("spec", [CanarySpec(), CanarySpec(repeats=(5,)), CanarySpec(label_noise=1e-5)])
def test_no_canaries_and_no_noise_return_the_source_itself(spec):
    assert insert_canaries(TRAIN, spec, 0) is TRAIN


@settings(max_examples=20, deadline=None)
@given(st.floats(0.001, 0.999), st.integers(0, 2**63 - 1))
def test_noise_changes_the_rounded_fraction_and_tells_which(fraction, seed):
    source = planted(CanarySpec(label_noise=fraction), seed)
    changed = np.flatnonzero(source.manifest.targets != TRAIN.manifest.targets)
    assert changed.tolist() == source.truth.index.tolist()
    assert len(changed) == round(fraction * NUM_TRAIN)
    assert (source.truth.true_class == TRAIN.manifest.targets[changed]).all()
    assert (source.truth.original == source.truth.index).all()
    assert set(source.truth.kind) == {"noisy"}


def test_noise_is_uniform_over_the_other_classes_and_over_the_samples():
    """Chi-square over 40 seeds at 50 % noise; 5 sigma of 80 degrees of freedom is 143."""
    counts_CC = np.zeros((10, 10))
    flipped_N = np.zeros(NUM_TRAIN)
    for seed in range(40):
        targets_N = planted(CanarySpec(label_noise=0.5), seed).manifest.targets
        np.add.at(counts_CC, (TRAIN.manifest.targets, targets_N), 1)
        flipped_N += targets_N != TRAIN.manifest.targets
    np.fill_diagonal(counts_CC, np.nan)
    expected_C1 = np.nanmean(counts_CC, axis=1, keepdims=True)
    assert np.nansum((counts_CC - expected_C1) ** 2 / expected_C1) < 143
    assert flipped_N.mean() == pytest.approx(20, abs=0.05)
    assert flipped_N.std() == pytest.approx(40**0.5 / 2, rel=0.15)


def test_the_seed_decides_the_canaries():
    one, same, other = planted(ALL_KINDS), planted(ALL_KINDS), planted(ALL_KINDS, seed=4)
    assert one.manifest == same.manifest != other.manifest
    for name, column in vars(one.truth).items():
        np.testing.assert_array_equal(column, getattr(same.truth, name))
    assert one.truth.index.tolist() != other.truth.index.tolist()


def test_indices_of_one_seed_are_pinned():
    """The choice rests on hashes alone, so it is the same on every machine and with every version of NumPy."""
    source = planted(CanarySpec(mislabelled=4), seed=0)
    assert list(
        zip(source.truth.index.tolist(), source.manifest.targets[source.truth.index].tolist(), strict=True)
    ) == [(65, 6), (333, 0), (404, 5), (609, 7)]


def test_more_noise_keeps_the_noise_there_is():
    less, more = (planted(CanarySpec(label_noise=fraction)) for fraction in (0.1, 0.3))
    assert set(less.truth.index) < set(more.truth.index)
    assert (more.manifest.targets[less.truth.index] == less.manifest.targets[less.truth.index]).all()


def test_noise_does_not_move_the_canaries():
    canaries = planted(CanarySpec(mislabelled=30, repeated=7, near_duplicates=5))
    both = planted(ALL_KINDS)
    for kind in ("mislabelled", "repeated", "near_duplicate"):
        assert indices(both, kind) == indices(canaries, kind)


def test_no_sample_is_of_two_kinds():
    truth = planted(ALL_KINDS).truth
    assert len(np.unique(truth.index)) == len(truth.index)
    assert (np.diff(truth.index) > 0).all()
    counts = dict(zip(*np.unique(truth.kind, return_counts=True), strict=True))
    # Seven images take 2, 4, 8, 2, 4, 8, 2 places; five have one darker copy each.
    assert counts == {"mislabelled": 30, "near_duplicate": 10, "noisy": 287, "repeated": 30}


def test_copies_stand_behind_the_samples_with_the_original_image_and_class():
    source = planted(ALL_KINDS)
    truth, manifest = source.truth, source.manifest
    assert manifest.num_samples == NUM_TRAIN + (30 - 7) + 5
    for index, original in zip(truth.index, truth.original, strict=True):
        assert (index == original) == (index < NUM_TRAIN)
    images, times = np.unique(truth.original[truth.kind == "repeated"], return_counts=True)
    assert times.tolist() == [2, 4, 8, 2, 4, 8, 2]
    for index in indices(source, "repeated"):
        original = int(truth.original[truth.index == index][0])
        assert original in images
        assert torch.equal(source.read(index), TRAIN.read(original))
        assert manifest.targets[index] == TRAIN.manifest.targets[original]


def test_a_near_duplicate_is_a_tenth_darker():
    source = planted(CanarySpec(near_duplicates=5))
    for index in range(NUM_TRAIN, NUM_TRAIN + 5):
        original = TRAIN.read(int(source.truth.original[source.truth.index == index][0]))
        darker = source.read(index)
        assert darker.dtype == torch.uint8
        assert (darker - 0.9 * original).abs().max() < 1
        assert not torch.equal(darker, original)


def test_other_samples_than_canaries_are_unchanged():
    source = planted(ALL_KINDS)
    rest = np.setdiff1d(np.arange(NUM_TRAIN), source.truth.index)
    assert (source.manifest.targets[rest] == TRAIN.manifest.targets[rest]).all()
    assert source.manifest.names()[:NUM_TRAIN] == TRAIN.manifest.names()
    assert all(torch.equal(source.read(int(index)), TRAIN.read(int(index))) for index in rest[::50])
    assert (source.source.manifest.targets == TRAIN.manifest.targets).all()


def test_every_canary_spec_has_its_own_fingerprint():
    plantings = [
        CanarySpec(label_noise=0.2),
        CanarySpec(mislabelled=3),
        CanarySpec(mislabelled=4),
        CanarySpec(repeated=3, repeats=(2,)),
        CanarySpec(repeated=3, repeats=(3,)),
        CanarySpec(near_duplicates=3),
    ]
    fingerprints = {TRAIN.manifest.fingerprint, *(planted(spec).manifest.fingerprint for spec in plantings)}
    assert len(fingerprints) == len(plantings) + 1


def test_a_repeated_and_a_darkened_copy_have_different_names():
    names = [
        planted(CanarySpec(**{kind: 1}), seed=0).manifest.name(NUM_TRAIN) for kind in ("repeated", "near_duplicates")
    ]
    assert names[0].endswith("#2")
    assert names[1].endswith("#darker")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (CanarySpec(mislabelled=1438), "1438 mislabelled: these are 1438 different samples"),
        (CanarySpec(label_noise=0.9, repeated=200), "200 repeated, 1293 noisy: these are 1493 different samples"),
    ],
)
def test_more_than_there_is_is_refused(spec, told):
    with pytest.raises(DatasetError, match=told) as caught:
        insert_canaries(TRAIN, spec, 0)
    assert "has 1437; lower data.canaries or data.label_noise" in str(caught.value)


def test_all_samples_may_be_canaries():
    assert len(planted(CanarySpec(mislabelled=NUM_TRAIN)).truth.index) == NUM_TRAIN


def test_canaries_of_image_files_are_alike(write_tree):
    root = write_tree({f"{split}/{name}": ["0.png", "1.png"] for split in ("train", "val") for name in ("a", "b")})
    train, _ = open_dataset("imagefolder", root, seed=0)
    source = insert_canaries(train, CanarySpec(mislabelled=1, repeated=1, repeats=(3,)), 0)
    assert isinstance(source, CanarySource)
    wrong = indices(source, "mislabelled")
    assert source.manifest.targets[wrong].tolist() == (1 - train.manifest.targets[wrong]).tolist()
    original = int(source.truth.original[-1])
    assert [source.manifest.name(4 + copy) for copy in (0, 1)] == [
        f"{train.manifest.name(original)}#{n}" for n in (2, 3)
    ]
    assert torch.equal(source.read(5), train.read(original))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_yields_the_canaries_classes_and_images(num_workers):
    source = pickle.loads(pickle.dumps(planted(ALL_KINDS)))
    num_samples = source.manifest.num_samples
    order = Order(num_samples, 155, shuffle=False, partial="pad")
    crop = CropSpec(image_size=8, crop_fraction=1.0)
    loader = make_loader("torch", source, order, crop, train=False, options=LoaderOptions(num_workers=num_workers))
    batches = list(loader)
    targets = torch.cat([batch.targets for batch in batches])[:num_samples]
    assert targets.tolist() == source.manifest.targets.tolist()
    images = torch.cat([batch.images for batch in batches])[:num_samples]
    assert torch.equal(images[-1], source.read(num_samples - 1))
