"""The digits are scikit-learn's own, split 1,437 to 360."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.sources.datasets import open_dataset


def test_each_image_is_the_row_of_the_table_that_it_is_named_after(digits):
    table = load_digits()
    rows = []
    for source in digits:
        manifest = source.manifest
        for index in range(manifest.num_samples):
            folder, label, row = manifest.name(index).split("/")
            assert folder == "digits"
            assert int(label) == table.target[int(row)] == manifest.targets[index]
            image = source.read(index)
            assert torch.equal(image[0], image[2])
            np.testing.assert_array_equal(image[1].numpy(), np.rint(table.images[int(row)] * 255 / 16))
            rows.append(int(row))
    assert sorted(rows) == list(range(1797))


def test_the_split_is_the_usual_one(digits):
    train, val = digits
    assert (train.manifest.num_samples, val.manifest.num_samples) == (1437, 360)
    assert train.manifest.classes == tuple("0123456789")
    assert np.bincount(val.manifest.targets).tolist() == pytest.approx([36] * 10, abs=1)


def test_images_are_bytes_over_the_whole_range(digits):
    image = digits[0].read(0)
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 8, 8))
    assert (int(digits[0].images.min()), int(digits[0].images.max())) == (0, 255)


def test_another_fraction_and_seed_hold_out_others(digits):
    _, val = open_dataset("digits", val_fraction=0.5, seed=0)
    assert val.manifest.num_samples == 899
    _, other = open_dataset("digits", seed=1)
    assert other.manifest != digits[1].manifest


def test_a_root_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="root must be left out"):
        open_dataset("digits", tmp_path, seed=0)
