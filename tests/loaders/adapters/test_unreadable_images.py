"""Images that cannot be read, left out on request: never a stale or neighbouring picture, at any number of workers."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.canary_source import CanarySpec, insert_canaries
from rlpheads.loaders.sources.datasets import ImageSource, open_dataset

NAMES = [f"{number:02d}.png" for number in range(10)]
BAD = {3: b"", 12: b"not an image at all " * 20, 13: None}
"""Canonical index of a file, and what stands in it: nothing, no image, no file."""


@pytest.fixture
def tree(write_tree) -> Path:
    return write_tree({f"{split}/{label}": NAMES for split in ("train", "val") for label in "ab"})


def spoil(root: Path) -> tuple[ImageSource, ImageSource]:
    """Open the tree of 20 images; those in BAD are damaged: two before it is scanned, one vanishes behind the scan."""
    for index in (3, 12):
        (root / "train" / "ab"[index // 10] / NAMES[index % 10]).write_bytes(BAD[index])
    train, val = open_dataset("imagefolder", root, seed=0)
    (root / "train" / "b" / NAMES[3]).unlink()
    return train, val


def read(source: ImageSource, *, train: bool = True, **options) -> list[Batch]:
    order = Order(20, 8, seed=1) if train else Order(20, 8, shuffle=False, partial="pad")
    loader = make_loader("torch", source, order, CropSpec(16), train=train, options=LoaderOptions(**options))
    return list(loader)


@pytest.mark.long
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("train", [True, False])
def test_the_rows_of_unreadable_images_are_black_and_all_others_as_ever(tree, train, num_workers):
    whole = read(open_dataset("imagefolder", tree, seed=0)[0], train=train)
    found = read(spoil(tree)[0], train=train, num_workers=num_workers, on_error="skip")
    assert len(found) == len(whole)
    skipped = set()
    for ours, expected in zip(found, whole, strict=True):
        bad = torch.isin(expected.index, torch.tensor(list(BAD)))
        assert ours.index.tolist() == torch.where(bad, -1, expected.index).tolist()
        assert torch.equal(ours.images[~bad], expected.images[~bad])
        assert torch.equal(ours.targets[~bad], expected.targets[~bad])
        assert not ours.images[bad].any()
        assert not ours.targets[bad].any()
        assert ours.skipped_index.tolist() == expected.index[bad].tolist()
        assert ours.num_global_rows == expected.num_global_rows
        skipped |= set(ours.skipped_index.tolist())
    assert skipped == set(BAD) & set(torch.cat([batch.index for batch in whole]).tolist())


def test_each_skip_names_its_file_and_what_is_wrong_with_it(tree):
    errors = {
        error.index: error for batch in read(spoil(tree)[0], train=False, on_error="skip") for error in batch.skipped
    }
    assert {index: (Path(error.path).parent.name, Path(error.path).name) for index, error in errors.items()} == {
        3: ("a", "03.png"),
        12: ("b", "02.png"),
        13: ("b", "03.png"),
    }
    assert errors[3].reason == "the file is empty"
    assert "Pillow does not know the format either" in errors[12].reason
    assert errors[13].reason == "No such file or directory"


def test_ranks_skip_what_one_rank_skips_and_a_resumed_loader_too(tree):
    source, _ = spoil(tree)
    alone = read(source, on_error="skip")
    ranks = [read(source, on_error="skip", rank=rank, world_size=2) for rank in range(2)]
    for whole, *shares in zip(alone, *ranks, strict=True):
        assert torch.equal(torch.cat([share.index for share in shares]), whole.index)
        assert torch.cat([share.skipped_index for share in shares]).tolist() == whole.skipped_index.tolist()
        assert {share.num_global_rows for share in shares} == {8}
    order = Order(20, 8, seed=1)
    options = LoaderOptions(on_error="skip", num_workers=1)
    loaders = [make_loader("torch", source, order, CropSpec(16), train=True, options=options) for _ in range(2)]
    list(islice(loaders[0], 1))
    loaders[1].load_state_dict(loaders[0].state_dict())
    (rest,) = list(loaders[1])
    assert torch.equal(rest.index, alone[1].index)
    assert rest.skipped_index.tolist() == alone[1].skipped_index.tolist()


def test_a_batch_of_nothing_readable_is_all_padding(tree):
    for path in tree.glob("train/*/*.png"):
        path.write_bytes(b"damaged")
    source, _ = open_dataset("imagefolder", tree, seed=0)
    for batch in read(source, on_error="skip", train=False):
        assert set(batch.index.tolist()) == {-1}
        assert not batch.images.any()
    assert sum(len(batch.skipped) for batch in read(source, on_error="skip", train=False)) == 20


def test_a_copy_of_an_unreadable_image_is_skipped_under_its_own_index(tree):
    source = insert_canaries(spoil(tree)[0], CanarySpec(repeated=20, repeats=(2,)), seed=0)
    order = Order(40, 40, shuffle=False, partial="pad")
    options = LoaderOptions(on_error="skip")
    (batch,) = make_loader("torch", source, order, CropSpec(16), train=False, options=options)
    copies = [20 + place for place, original in enumerate(source.copied) if int(original) in BAD]
    assert batch.skipped_index.tolist() == [*BAD, *copies]
    assert {error.path.rpartition("/")[2] for error in batch.skipped} == {"03.png", "02.png"}
