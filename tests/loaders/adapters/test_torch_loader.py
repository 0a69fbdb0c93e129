"""Batches depend on (seed, epoch, position) alone: not on workers, world size, resume point or the global generator."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.crops import CropSpec, keyed_crops
from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.contract.loader import Loader
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.datasets import open_dataset

CROP = CropSpec(16)
BATCH_SIZE = 96


def digits_loader(digits, *, train: bool = True, batch_size: int = BATCH_SIZE, seed: int = 3, **options) -> Loader:
    source = digits[0] if train else digits[1]
    partial = "drop" if train else "pad"
    order = Order(source.manifest.num_samples, batch_size, seed, shuffle=train, partial=partial)
    return make_loader("torch", source, order, CROP, train=train, options=LoaderOptions(**options))


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.images, other.images)
        assert torch.equal(mine.targets, other.targets)
        assert torch.equal(mine.index, other.index)
        assert mine.num_global_rows == other.num_global_rows


@pytest.fixture(scope="module")
def epochs(digits) -> list[list[Batch]]:
    """The first two epochs, read in this process without a break."""
    loader = digits_loader(digits)
    batches = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches.append(list(loader))
    return batches


def test_a_batch_is_its_images_targets_and_indices(digits, epochs):
    manifest = digits[0].manifest
    batch = epochs[0][0]
    assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.uint8, (BATCH_SIZE, 3, 16, 16))
    assert batch.num_global_rows == len(batch) == BATCH_SIZE
    index = batch.index.numpy()
    np.testing.assert_array_equal(index, Order(1437, BATCH_SIZE, 3).epoch_indices(0)[:BATCH_SIZE])
    np.testing.assert_array_equal(batch.targets.numpy(), manifest.targets[index])


def test_training_pixels_are_the_keyed_crop_resized_and_flipped(digits, epochs):
    batch = epochs[1][2]
    index = batch.index.numpy()
    boxes, flipped = keyed_crops(CROP, 3, 1, index, np.full((len(index), 2), 8))
    for row, sample in enumerate(index):
        top, left, height, width = boxes[row]
        cut = digits[0].read(sample)[:, top : top + height, left : left + width]
        expected = v2.Resize((16, 16), antialias=True)(cut)
        assert torch.equal(batch.images[row], expected.flip(-1) if flipped[row] else expected)
    assert 0 < flipped.sum() < len(index)


def test_epochs_read_other_batches_and_crops(epochs):
    assert not torch.equal(epochs[0][0].index, epochs[1][0].index)
    first = {int(i): image for batch in epochs[0] for i, image in zip(batch.index, batch.images, strict=True)}
    second = {int(i): image for batch in epochs[1] for i, image in zip(batch.index, batch.images, strict=True)}
    shared = first.keys() & second.keys()
    assert sum(torch.equal(first[i], second[i]) for i in shared) < 0.05 * len(shared)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(digits, epochs, num_workers):
    loader = digits_loader(digits, num_workers=num_workers)
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        assert_same(list(loader), epochs[epoch])


@pytest.mark.long
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_where_another_stopped(digits, epochs, num_workers):
    """Stop after any number of batches, with others read ahead, and go on in a fresh loader or in the same one."""
    stopped = digits_loader(digits, num_workers=num_workers)
    resumed = digits_loader(digits, num_workers=num_workers)
    for num_read in (0, 1, 5, 13, 14):
        stopped.set_epoch(1)
        before = list(islice(stopped, num_read))
        state = stopped.state_dict()
        assert state == {"epoch": 1, "consumed": num_read * BATCH_SIZE}
        resumed.load_state_dict(state)
        assert_same(before + list(resumed), epochs[1])
        assert_same(before + list(stopped), epochs[1])
        assert resumed.state_dict() == {"epoch": 1, "consumed": 14 * BATCH_SIZE}


def test_the_end_of_an_epoch_is_a_position_too(digits, epochs):
    loader = digits_loader(digits)
    assert len(list(loader)) == len(loader) == 14
    assert list(loader) == []
    loader.set_epoch(1)
    assert_same(list(islice(loader, 1)), epochs[1][:1])


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_the_ranks_share_each_global_batch(digits, epochs, world_size):
    ranks = [digits_loader(digits, rank=rank, world_size=world_size) for rank in range(world_size)]
    for whole, *shares in zip(epochs[0], *ranks, strict=True):
        for name in ("images", "targets", "index"):
            assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))
        assert {share.num_global_rows for share in shares} == {BATCH_SIZE}
    assert [rank.state_dict() for rank in ranks] == [{"epoch": 0, "consumed": 14 * BATCH_SIZE}] * world_size


def test_a_run_goes_on_at_another_world_size(digits, epochs):
    alone = digits_loader(digits)
    before = list(islice(alone, 6))
    ranks = [digits_loader(digits, rank=rank, world_size=4) for rank in range(4)]
    for rank in ranks:
        rank.load_state_dict(alone.state_dict())
    indices = [torch.cat([share.index for share in shares]) for shares in zip(*ranks, strict=True)]
    read = torch.stack([batch.index for batch in before] + indices)
    assert torch.equal(read, torch.stack([batch.index for batch in epochs[0]]))


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 100), (2, 94), (4, 400), (7, 7 * 13)])
def test_evaluation_sees_each_sample_once_at_any_world_size(digits, world_size, batch_size):
    options = {"train": False, "batch_size": batch_size, "world_size": world_size}
    ranks = [digits_loader(digits, rank=rank, **options) for rank in range(world_size)]
    seen, rows = [], []
    for shares in zip(*ranks, strict=True):
        index = torch.cat([share.index for share in shares])
        padding = index == -1
        seen.append(index[~padding])
        assert {share.num_global_rows for share in shares} == {int((~padding).sum())}
        assert [share.is_full for share in shares] == [-1 not in share.index for share in shares]
        rows.append(shares[0].num_global_rows)
        assert not torch.cat([share.images for share in shares])[padding].any()
        assert not torch.cat([share.targets for share in shares])[padding].any()
    assert torch.equal(torch.cat(seen), torch.arange(360))
    assert sum(rows) == ranks[0].state_dict()["consumed"] == 360


@pytest.mark.parametrize("image_size", [8, 16, 33])
def test_evaluation_pixels_are_those_of_torchvision(write_tree, image_size):
    _, source = open_dataset(
        "imagefolder", write_tree({f"{s}/{c}": ["1.png", "2.png"] for s in ("train", "val") for c in "ab"}), seed=0
    )
    crop = CropSpec(image_size)
    loader = make_loader("torch", source, Order(4, 4, shuffle=False, partial="pad"), crop, train=False)
    reference = v2.Compose([v2.Resize(crop.short_side, antialias=True), v2.CenterCrop(image_size)])
    (batch,) = loader
    for index in range(4):
        assert torch.equal(batch.images[index], reference(source.read(index)))


def test_images_of_all_sizes_share_a_batch(write_tree):
    """More images than are decoded at once, of many sizes, so that every group lands in its own rows."""
    names = [f"{number:02d}.png" for number in range(40)]
    train, _ = open_dataset("imagefolder", write_tree({"a": names, "b": names}), val_fraction=0.05, seed=0)
    num_samples = train.manifest.num_samples
    order = Order(num_samples, num_samples - num_samples % 2, seed=1)
    (batch,) = make_loader("torch", train, order, CROP, train=True)
    (again,) = make_loader("torch", train, order, CROP, train=True, options=LoaderOptions(num_workers=1))
    assert_same([batch], [again])
    for row in (0, 31, 32, len(batch) - 1):
        image = train.read(int(batch.index[row]))
        boxes, flipped = keyed_crops(CROP, 1, 0, batch.index[row : row + 1].numpy(), np.array([image.shape[1:]]))
        expected = v2.functional.resized_crop(image, *boxes[0].tolist(), [16, 16], antialias=True)
        assert torch.equal(batch.images[row], expected.flip(-1) if flipped[0] else expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_global_generator_is_touched(digits, num_workers):
    before = torch.get_rng_state(), random.getstate()
    loader = digits_loader(digits, num_workers=num_workers)
    for epoch in range(2):
        loader.set_epoch(epoch)
        list(loader)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_the_global_generator_changes_no_batch(digits, epochs):
    torch.manual_seed(1234)
    assert_same(list(digits_loader(digits)), epochs[0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_stops_the_epoch_by_name(write_tree, num_workers):
    root = write_tree({f"{s}/{c}": ["1.png", "2.png"] for s in ("train", "val") for c in "ab"})
    (root / "train" / "b" / "1.png").write_bytes(b"no image")
    source, _ = open_dataset("imagefolder", root, seed=0)
    order = Order(4, 2, shuffle=False)
    loader = make_loader("torch", source, order, CROP, train=True, options=LoaderOptions(num_workers=num_workers))
    batches = iter(loader)
    assert next(batches).index.tolist() == [0, 1]
    with pytest.raises(ImageReadError, match=rf"^image 2 \({root}/train/b/1.png\) cannot be read: [^\n]+$"):
        next(batches)
    assert loader.state_dict() == {"epoch": 0, "consumed": 2}


@pytest.mark.parametrize(
    ("kind", "num_samples", "world_size", "message"),
    [
        ("trch", 1437, 1, "no loader 'trch': it must be one of torch, .*; did you mean 'torch'"),
        ("torch", 1000, 1, "order is for 1000 samples, but the source has 1437"),
        ("torch", 1437, 5, "multiple of 10; the nearest is 100"),
    ],
)
def test_loaders_that_do_not_fit_are_refused(digits, kind, num_samples, world_size, message):
    order = Order(num_samples, BATCH_SIZE)
    with pytest.raises(ValueError, match=message):
        make_loader(kind, digits[0], order, CROP, train=True, options=LoaderOptions(world_size=world_size))


def test_a_position_of_another_batch_size_is_refused(digits):
    earlier = digits_loader(digits, batch_size=64)
    next(iter(earlier))
    with pytest.raises(ValueError, match=r"no step begins after 64 samples: .* multiple of the global batch size 96"):
        digits_loader(digits).load_state_dict(earlier.state_dict())
