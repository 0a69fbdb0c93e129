"""Data sets without a folder: synthetic images, and tiles of photographs inside installed packages."""

import numpy as np
import pytest
import torch

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.sources import patches
from rlpheads.loaders.sources.canary_source import CanarySpec, insert_canaries
from rlpheads.loaders.sources.datasets import count_classes, open_dataset
from rlpheads.loaders.sources.synthetic import SyntheticSpec

SPEC = SyntheticSpec(train=100, val=20, classes=3, side=17)


def test_a_synthetic_image_depends_on_its_index_and_split_alone():
    train, val = open_dataset("synthetic", seed=0, synthetic=SPEC)
    again, _ = open_dataset("synthetic", seed=5, synthetic=SPEC)
    assert (train.manifest.num_samples, val.manifest.num_samples) == (100, 20)
    assert train.manifest == again.manifest
    for index in (99, 0, 50):
        assert torch.equal(train.read(index), again.read(index))
        assert train.read(index).shape == (3, 17, 17)
    images = torch.stack([train.read(index) for index in range(100)] + [val.read(index) for index in range(20)])
    assert len(images.flatten(1).unique(dim=0)) == 120
    assert images.dtype == torch.uint8


def test_synthetic_classes_are_even_and_differ_in_their_colour():
    train, _ = open_dataset("synthetic", seed=0, synthetic=SyntheticSpec(train=100, val=20, classes=3, side=32))
    assert np.bincount(train.manifest.targets).tolist() == pytest.approx([33, 33, 33], abs=1)
    colours = torch.stack([train.read(index).float().mean((1, 2)) for index in range(100)])
    targets = torch.from_numpy(train.manifest.targets)
    means = torch.stack([colours[targets == label].mean(0) for label in range(3)])
    spread = torch.stack([colours[targets == label].std(0) for label in range(3)]).max()
    assert torch.cdist(means, means)[~torch.eye(3, dtype=torch.bool)].min() > 5 * spread


@pytest.mark.parametrize(
    ("wrong", "message"), [({"classes": 1}, "2 classes"), ({"val": 2}, "fewer than the 3 classes")]
)
def test_a_synthetic_set_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(DatasetError, match=message):
        SyntheticSpec(**({"train": 100, "val": 20, "classes": 3} | wrong))


def test_patches_are_tiles_of_their_photographs_and_do_not_overlap():
    splits = open_dataset("patches", seed=0)
    photographs = {}
    seen = set()
    for source in splits:
        manifest = source.manifest
        assert manifest.classes == tuple(sorted(patches.PHOTOGRAPHS))
        for index in range(manifest.num_samples):
            _, name, corner = manifest.name(index).split("/")
            assert (name, corner) not in seen
            seen.add((name, corner))
            assert manifest.classes[manifest.targets[index]] == name
            top, left = map(int, corner.split("-"))
            assert top % 32 == left % 32 == 0
            if name not in photographs:
                photographs[name] = patches._read_photograph(name)
            assert torch.equal(source.read(index), photographs[name][:, top : top + 32, left : left + 32])
    train, val = splits
    assert len(seen) == train.manifest.num_samples + val.manifest.num_samples > 2000
    assert np.bincount(train.manifest.targets).max() <= 256
    assert val.manifest.num_samples == pytest.approx(0.2 * len(seen), abs=1)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(patches, "PHOTOGRAPHS", {"cat": ("skimage_that_is_not_there", "data/chelsea.png")})
    monkeypatch.setattr(patches, "_INSTALL", {"skimage_that_is_not_there": "pip install it"})
    with pytest.raises(DatasetError, match="comes with skimage_that_is_not_there, which is missing: pip install it"):
        open_dataset("patches", seed=0)


def test_a_photograph_that_is_gone_is_named(monkeypatch):
    monkeypatch.setattr(patches, "PHOTOGRAPHS", {"cat": ("skimage", "data/chels.png")})
    with pytest.raises(DatasetError, match="this version of skimage keeps no photograph 'cat'"):
        open_dataset("patches", seed=0)


@pytest.mark.parametrize("name", ["digits", "patches", "synthetic"])
def test_samples_stand_in_canonical_order_and_take_canaries(name):
    for source in open_dataset(name, seed=0, synthetic=SPEC):
        manifest = source.manifest
        assert list(manifest.classes) == sorted(manifest.classes)
        assert (np.diff(manifest.targets) >= 0).all()
        names = manifest.names()
        assert names == sorted(names)
    train, _ = open_dataset(name, seed=0, synthetic=SPEC)
    num_samples = train.manifest.num_samples
    planted = insert_canaries(train, CanarySpec(0.1, mislabelled=3, repeated=2, repeats=(3,), near_duplicates=2), 0)
    assert planted.manifest.num_samples == num_samples + 2 * 2 + 2
    for copy, original in enumerate(planted.copied.tolist()):
        image, source_image = planted.read(num_samples + copy), train.read(original)
        assert torch.equal(image, source_image if copy < 4 else source_image - source_image // 10)
    wrong = np.flatnonzero(planted.manifest.targets[:num_samples] != train.manifest.targets)
    assert len(wrong) == 3 + round(0.1 * num_samples)


@pytest.mark.parametrize("name", ["patches", "synthetic"])
def test_a_root_is_refused(name, tmp_path):
    with pytest.raises(DatasetError, match="root must be left out"):
        open_dataset(name, tmp_path, seed=0)


@pytest.mark.parametrize("name", ["digits", "patches", "synthetic"])
def test_classes_are_counted_without_opening_the_images(name):
    train, _ = open_dataset(name, seed=0, synthetic=SPEC)
    assert count_classes(name, synthetic=SPEC) == len(train.manifest.classes)
