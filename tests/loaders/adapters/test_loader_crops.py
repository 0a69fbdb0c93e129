"""What was cut out of a JPEG is read off its pixels: the keyed crop in every loader that decodes JPEGs themselves."""

import random
from itertools import islice, product

import numpy as np
import pytest
import torch
from loader_kinds import KINDS, loader_of, write_ramps
from PIL import Image

from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.crops import CropSpec, keyed_crops
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.sources.datasets import ImageSource, open_dataset

CROP = CropSpec(32)
NUM_EPOCHS, NUM_IMAGES, BATCH_SIZE = 3, 103, 24


@pytest.fixture(scope="module")
def ramps(tmp_path_factory) -> ImageSource:
    return write_ramps(tmp_path_factory.mktemp("ramps"), NUM_IMAGES)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> ImageSource:
    """Rough pictures without black and white, so that bicubic overshoots neither."""
    root = tmp_path_factory.mktemp("photographs")
    for split, number in product(("train", "val"), range(16)):
        random = np.random.default_rng([len(split), number])
        pixels_HWC = random.integers(64, 192, (*random.integers(120, 180, 2), 3), dtype=np.uint8)
        folder = root / split / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_HWC).save(folder / f"{number:04d}.png")
    return open_dataset("imagefolder", root, seed=0)[0]


def epochs_of(kind: str, source: ImageSource, **options) -> list[list[Batch]]:
    """Three epochs; the second is broken off at a random step, and another loader goes on from there."""
    loader = loader_of(kind, source, CROP, BATCH_SIZE, **options)
    epochs = []
    for epoch in range(NUM_EPOCHS):
        loader.set_epoch(epoch)
        if epoch == 1:
            before = list(islice(loader, random.Random(kind).randrange(1, len(loader))))
            state = loader.state_dict()
            loader = loader_of(kind, source, CROP, BATCH_SIZE, **options)
            loader.load_state_dict(state)
            epochs.append(before + list(loader))
        else:
            epochs.append(list(loader))
    return epochs


@pytest.fixture(scope="module")
def plain(ramps) -> list[list[Batch]]:
    """What torch yields at one rank in this process."""
    return epochs_of("torch", ramps)


def cut_out(images_B3SS: torch.Tensor) -> np.ndarray:
    """Read off ramps what was cut out of them: float (B, 4) of first column, last column, first row, last row.

    Columns in the order in which they lie in the square. A line is fitted, so that rounding and the edges do not matter.
    """
    inside = np.arange(3, CROP.image_size - 3)
    ends = []
    for axis in (0, 1):
        ramp_BS = images_B3SS[:, axis].double().mean(dim=1 + axis).numpy()[:, inside]
        slope_B, start_B = np.polyfit(inside + 0.5, ramp_BS.T, deg=1)
        ends += [start_B, start_B + slope_B * CROP.image_size]
    return np.stack(ends, axis=1)


def expected_cuts(source: ImageSource, batch: Batch, epoch: int) -> np.ndarray:
    index = batch.index[batch.index >= 0].numpy()
    sizes = np.array([source.read(int(sample)).shape[1:] for sample in index])
    boxes, flipped = keyed_crops(CROP, 3, epoch, index, sizes)
    top, left, height, width = boxes.T.astype(float) - [[0.5], [0.5], [0], [0]]  # a pixel's value is that of its middle
    first, last = np.where(flipped, left + width, left), np.where(flipped, left, left + width)
    return np.stack([first, last, top, top + height], axis=1)


def test_crops_can_be_read_off_the_pixels_and_are_the_keyed_ones(ramps, plain):
    for epoch, batches in enumerate(plain):
        for batch in batches:
            found = cut_out(batch.images[batch.index >= 0])
            np.testing.assert_allclose(found, expected_cuts(ramps, batch, epoch), atol=0.49)


@pytest.mark.long
@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_three_epochs_are_the_same_in_every_loader(ramps, plain, kind, world_size, num_workers):
    """Samples exactly; crops and flips to less than a pixel, in which they are whole numbers."""
    ranks = [
        epochs_of(kind, ramps, rank=rank, world_size=world_size, num_workers=num_workers) for rank in range(world_size)
    ]
    for epoch, batches in enumerate(plain):
        for step, whole in enumerate(batches):
            shares = [rank[epoch][step] for rank in ranks]
            assert torch.equal(torch.cat([share.index for share in shares]), whole.index)
            assert torch.equal(torch.cat([share.targets for share in shares]), whole.targets)
            assert {share.num_global_rows for share in shares} == {whole.num_global_rows}
            images = torch.cat([share.images for share in shares])
            seen = whole.index >= 0
            difference = (images.float() - whole.images.float()).abs().mean(dim=(2, 3))
            assert difference.max() < 0.5, "a crop that is one pixel off changes red or green by one"
            np.testing.assert_allclose(cut_out(images[seen]), expected_cuts(ramps, whole, epoch), atol=0.49)
            assert not images[~seen].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_costs_the_same_at_any_position(ramps, kind):
    """The first image of a resumed epoch is gone; a loader that reads what was consumed would trip over it."""
    loader = loader_of(kind, ramps, CROP, BATCH_SIZE)
    first = int(Order(NUM_IMAGES, BATCH_SIZE, 3).epoch_indices(2)[0])
    path = ramps.manifest.path(first)
    data = path.read_bytes()
    path.unlink()
    try:
        loader.load_state_dict({"epoch": 2, "consumed": 2 * BATCH_SIZE})
        assert len(list(loader)) == len(loader) - 2
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_repeats_have_crops_of_their_own_at_any_number_of_ranks(ramps, kind):
    order = Order(NUM_IMAGES, BATCH_SIZE, 3, repeats=3)
    whole = list(loader_of(kind, ramps, CROP, BATCH_SIZE, order=order))
    halves = [list(loader_of(kind, ramps, CROP, BATCH_SIZE, order=order, rank=rank, world_size=2)) for rank in (0, 1)]
    assert len(whole) == NUM_IMAGES // BATCH_SIZE
    for step, batch in enumerate(whole):
        shares = [half[step] for half in halves]
        assert torch.equal(torch.cat([share.index for share in shares]), batch.index)
        assert torch.equal(torch.cat([share.images for share in shares]), batch.images)
        keys = order.draw_keys(batch.index.numpy(), 0, 1)
        sizes = np.array([ramps.read(int(sample)).shape[1:] for sample in batch.index])
        boxes, flipped = keyed_crops(CROP, 3, 0, keys, sizes)
        top, left, height, width = boxes.T.astype(float) - [[0.5], [0.5], [0], [0]]
        first, last = np.where(flipped, left + width, left), np.where(flipped, left, left + width)
        expected = np.stack([first, last, top, top + height], axis=1)
        np.testing.assert_allclose(cut_out(batch.images), expected, atol=0.49)
        assert len(np.unique(boxes, axis=0)) == BATCH_SIZE
    resumed = loader_of(kind, ramps, CROP, BATCH_SIZE, order=order)
    resumed.load_state_dict({"epoch": 0, "consumed": 2 * BATCH_SIZE})
    for ours, theirs in zip(resumed, whole[2:], strict=True):
        assert torch.equal(ours.images, theirs.images)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_each_epoch_has_its_size_and_the_pixels_of_a_loader_of_that_size(ramps, kind, num_workers):
    """After a resume too; and evaluation has the last one in any epoch."""
    grows = CropSpec(32, early_sizes=(16, 24))
    loader = loader_of(kind, ramps, grows, BATCH_SIZE, num_workers=num_workers)
    for epoch, size in ((0, 16), (1, 24), (2, 32), (3, 32), (1, 24)):
        fixed = loader_of(kind, ramps, CropSpec(size), BATCH_SIZE)
        for each in (loader, fixed):
            each.set_epoch(epoch, consumed=2 * BATCH_SIZE)
        for ours, theirs in zip(loader, fixed, strict=True):
            assert ours.images.shape[2:] == (size, size)
            assert torch.equal(ours.images, theirs.images)
    evaluation = loader_of(kind, ramps, grows, BATCH_SIZE, train=False)
    assert next(iter(evaluation)).images.shape[2:] == (32, 32)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_bicubic_pixels_are_those_of_torchvision(photographs, kind, train):
    """And not the bilinear ones, which are several times as far off."""
    wanted, other = CropSpec(40, interpolation="bicubic"), CropSpec(40)
    theirs, bilinear = (list(loader_of("torch", photographs, crop, 16, train=train)) for crop in (wanted, other))
    for ours, torchs, blurred in zip(
        loader_of(kind, photographs, wanted, 16, train=train), theirs, bilinear, strict=True
    ):
        rows = ours.index >= 0
        difference = (ours.images[rows].float() - torchs.images[rows].float()).abs()
        inside = difference[..., 4:-4, 4:-4]  # beyond the edges DALI repeats the last pixel
        assert inside.max() <= 1
        assert inside.mean() < 0.25
        assert (blurred.images[rows].float() - torchs.images[rows].float()).abs().mean() > 1.2


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_pixels_are_those_of_torchvision(ramps, kind):
    crop = CropSpec(24)
    for ours, theirs in zip(
        loader_of(kind, ramps, crop, 32, train=False), loader_of("torch", ramps, crop, 32, train=False), strict=True
    ):
        assert (ours.images.float() - theirs.images.float()).abs().mean() < 0.5
