"""Files reach a decoder as bytes, through whatever stands between them and the loader."""

import pytest
import torch

from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.sources.canary_source import CanarySpec, insert_canaries
from rlpheads.loaders.sources.datasets import EncodedSource, open_dataset
from rlpheads.loaders.sources.subset import take_subset


@pytest.fixture
def folder(write_tree):
    root = write_tree(
        {f"{split}/{label}": ["1.jpg", "2.png", "3.webp"] for split in ("train", "val") for label in "ab"}
    )
    return open_dataset("imagefolder", root, seed=0)[0]


def test_what_is_read_is_the_encoded_decoded(folder):
    sources = [
        folder,
        take_subset(folder, 0.5, None, seed=0),
        insert_canaries(folder, CanarySpec(repeated=2, repeats=(2,), near_duplicates=2), seed=0),
        insert_canaries(take_subset(folder, 0.5, None, seed=0), CanarySpec(repeated=1, repeats=(3,)), seed=0),
    ]
    for source in sources:
        assert isinstance(source, EncodedSource)
        for index in range(source.manifest.num_samples):
            data = source.encoded(index)
            if "darker" in source.manifest.name(index):
                assert data is None
            else:
                assert torch.equal(source.decode(index, data), source.read(index))


def test_images_without_files_have_no_bytes(digits):
    assert not isinstance(digits[0], EncodedSource)
    assert take_subset(digits[0], 0.5, None, seed=0).encoded(0) is None
    assert insert_canaries(digits[0], CanarySpec(repeated=1), seed=0).encoded(0) is None


def test_errors_of_a_subset_bear_its_own_index(folder):
    subset = take_subset(folder, 0.3, None, seed=0)
    index = subset.manifest.num_samples - 1
    with pytest.raises(ImageReadError) as caught:
        subset.decode(index, b"damaged")
    assert caught.value.index == index
    assert caught.value.path == str(subset.manifest.path(index))
    subset.manifest.path(index).unlink()
    with pytest.raises(ImageReadError, match=f"^image {index} .*No such file"):
        subset.encoded(index)
