"""One order, one crop: every loader yields the same samples in the same places, cut from the same boxes.

The images are noise, of many sizes: a box that is one pixel off, a flip that is forgotten or a neighbour's picture shows as
tens of grey levels.
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from loader_libraries import require_library
from PIL import Image

from rlpheads.loaders.augment.mixing import Mixer, MixSpec
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.augment.pipeline import Augment
from rlpheads.loaders.augment.spec import AugmentSpec
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.loader import Loader
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.canary_source import CanarySpec, insert_canaries
from rlpheads.loaders.sources.datasets import ImageSource, open_dataset
from rlpheads.loaders.store.image_encoding import Encoding
from rlpheads.loaders.store.write_ffcv import Job, write_beton

KINDS = ["torch", "ffcv", "dali"]
AT_EDGES = {"dali": 36}
"""Grey levels in which the outermost pixels of noise may differ: beyond a crop's edge DALI repeats the last pixel, at most an
eighth of the weight, where the others weigh what there is the more. Everywhere else, and in the other loaders, it is one."""
CROP = CropSpec(16)
BATCH_SIZE = 24
NUM_STEPS = 4

Sources = Callable[[int], tuple[ImageSource, ImageSource]]


def write_noise(root: Path, count: int, side: int) -> None:
    """Images of two classes, `count` for each split."""
    for split in ("train", "val"):
        for number in range(count):
            folder = root / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            shape = (side + number % 7, side + number % 5, 3)
            pixels = np.random.default_rng([len(split), number]).integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04d}.png", compress_level=1)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    require_library(request.param)
    return request.param


@pytest.fixture(scope="module")
def open_noise(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], tuple[ImageSource, ImageSource]]:
    """Training and held-out images, as many of each as asked for, from where a loader reads them."""
    folder = tmp_path_factory.mktemp("noise")

    def open_(kind: str, count: int) -> tuple[ImageSource, ImageSource]:
        tree, store = folder / f"tree{count}", folder / f"store{count}"
        if not tree.exists():
            write_noise(tree, count, side=28 if count < 1000 else 8)
        sources = open_dataset("imagefolder", tree, seed=0)
        if kind != "ffcv":
            return sources
        for source in sources if not store.exists() else ():
            path = store / f"{source.manifest.split}.beton"
            write_beton(Job(source, path, "imagefolder", None, Encoding("raw")))
        return open_dataset("imagefolder", store, seed=0)

    return open_


def training_loader(kind: str, source: ImageSource, **options) -> Loader:
    order = Order(source.manifest.num_samples, BATCH_SIZE, seed=3)
    return make_loader(kind, source, order, CROP, train=True, options=LoaderOptions(**options))


def read_epochs(loader: Loader) -> list[list[Batch]]:
    epochs = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        epochs.append(list(loader))
    return epochs


def assert_alike(kind: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Images of loader `kind` are those of the loader on torch, but for rounding and the edges."""
    difference = (ours.int() - theirs.int()).abs()
    assert difference[..., 1:-1, 1:-1].max() <= 1
    assert difference.max() <= AT_EDGES.get(kind, 1)


def assert_same(ours: list[Batch], theirs: list[Batch], kind: str | None = None) -> None:
    """To the bit; or, where a loader is named, alike."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.index, other.index)
        assert torch.equal(mine.targets, other.targets)
        assert mine.num_global_rows == other.num_global_rows
        if kind is None:
            assert torch.equal(mine.images, other.images)
        else:
            assert_alike(kind, mine.images, other.images)


@pytest.fixture(scope="module")
def whole(open_noise) -> list[list[Batch]]:
    """Three epochs through the loader on torch, one rank, without a break."""
    return read_epochs(training_loader("torch", open_noise("torch", 103)[0]))


@pytest.mark.long
@pytest.mark.parametrize("num_workers", [1, 2])
def test_epochs_are_the_same_through_every_loader(kind, open_noise, whole, num_workers):
    loader = training_loader(kind, open_noise(kind, 103)[0], num_workers=num_workers)
    for ours, theirs in zip(read_epochs(loader), whole, strict=True):
        assert len(ours) == NUM_STEPS
        assert_same(ours, theirs, kind)


@pytest.mark.long
def test_how_many_crops_are_drawn_at_once_changes_nothing(kind, open_noise, whole, monkeypatch):
    module = "adapters.ffcv_boxes" if kind == "ffcv" else "contract.request"
    monkeypatch.setattr(f"rlpheads.loaders.{module}.DRAWN_AT_ONCE", 2 * BATCH_SIZE)
    loader = training_loader(kind, open_noise(kind, 103)[0], num_workers=1)
    for ours, theirs in zip(read_epochs(loader), whole, strict=True):
        assert_same(ours, theirs, kind)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_two_ranks_share_each_batch(kind, open_noise, whole, num_workers):
    source = open_noise(kind, 103)[0]
    ranks = [
        read_epochs(training_loader(kind, source, rank=rank, world_size=2, num_workers=num_workers)) for rank in (0, 1)
    ]
    for epoch, theirs in enumerate(whole):
        for first, second, together in zip(ranks[0][epoch], ranks[1][epoch], theirs, strict=True):
            assert torch.equal(torch.cat([first.index, second.index]), together.index)
            assert_alike(kind, torch.cat([first.images, second.images]), together.images)


@pytest.mark.long
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_loader_goes_on_at_any_step(kind, open_noise, whole, world_size):
    """The state of one loader, after a random step of a random epoch, moves another one there, to the very same bits."""
    source = open_noise(kind, 103)[0]
    options = {"rank": world_size - 1, "world_size": world_size, "num_workers": 2}
    uninterrupted = training_loader(kind, source, **options)
    stopped, resumed = training_loader(kind, source, **options), training_loader(kind, source, **options)
    for epoch, step in np.random.default_rng(0).integers((0, 0), (3, NUM_STEPS + 1), (4, 2)).tolist():
        uninterrupted.set_epoch(epoch)
        stopped.set_epoch(epoch)
        list(islice(stopped, step))
        assert stopped.state_dict() == {"epoch": epoch, "consumed": step * BATCH_SIZE}
        resumed.load_state_dict(stopped.state_dict())
        assert_same(list(resumed), list(uninterrupted)[step:])


@pytest.mark.long
@pytest.mark.parametrize("count", [103, 1797])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_index_once(kind, open_noise, count, world_size):
    source = open_noise(kind, count)[1]
    batch_size = 60 if count == 103 else 300  # 43 and 297 rows in the last batch: a rank's share is padding alone
    order = Order(count, batch_size, shuffle=False, partial="pad")
    ranks = [
        make_loader(kind, source, order, CROP, train=False, options=LoaderOptions(rank, world_size, num_workers=1))
        for rank in range(world_size)
    ]
    for epoch in range(2):
        seen = []
        for rank in ranks:
            rank.set_epoch(epoch)
        for shares in zip(*ranks, strict=True):
            index = torch.cat([share.index for share in shares])
            images = torch.cat([share.images for share in shares])
            assert not images[index == -1].any()
            assert [share.is_full for share in shares] == [-1 not in share.index for share in shares]
            assert {share.num_global_rows for share in shares} == {int((index >= 0).sum())}
            seen.append(index[index >= 0])
        assert torch.equal(torch.cat(seen), torch.arange(count))


def test_evaluation_pixels_are_torchvisions(kind, open_noise):
    order = Order(103, 103, shuffle=False, partial="pad")
    (ours,) = make_loader(kind, open_noise(kind, 103)[1], order, CROP, train=False)
    (reference,) = make_loader("torch", open_noise("torch", 103)[1], order, CROP, train=False)
    assert torch.equal(ours.index, reference.index)
    difference = (ours.images.int() - reference.images.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() <= 0.5


def test_canaries_are_the_same_through_every_loader(kind, open_noise):
    spec = CanarySpec(label_noise=0.2, mislabelled=5, repeated=3, repeats=(2, 4), near_duplicates=4)
    order = Order(103 + 1 + 3 + 1 + 4, 112, seed=1, partial="pad")
    batches = []
    for each in ("torch", kind):
        source = insert_canaries(open_noise(each, 103)[0], spec, seed=5)
        batches.append(list(make_loader(each, source, order, CROP, train=True)))
    assert_same(batches[1], batches[0], kind)


def test_a_kept_batch_stays_as_it_was(kind, open_noise):
    loader = training_loader(kind, open_noise(kind, 103)[0], num_workers=1, prefetch=1)
    kept, copies = [], []
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            kept.append(batch)
            copies.append(batch.images.clone())
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(kept, copies, strict=True))


def test_the_same_manifest_through_every_loader(kind, open_noise):
    ours, reference = open_noise(kind, 103), open_noise("torch", 103)
    assert [source.manifest.fingerprint for source in ours] == [source.manifest.fingerprint for source in reference]


def test_whole_images_and_their_augmentation_are_the_same_through_every_loader(kind, open_noise):
    """CIFAR's crop: the loader hands over the largest central square, and the device shifts, augments and mixes it."""

    def first_batch(kind: str) -> Batch:
        source = open_noise(kind, 103)[0]
        order = Order(source.manifest.num_samples, BATCH_SIZE, seed=3)
        return next(iter(make_loader(kind, source, order, CropSpec(16, kind="whole"), train=True)))

    ours, theirs = first_batch(kind), first_batch("torch")
    assert_same([ours], [theirs], kind)
    augment = Augment(AugmentSpec(padding=3, cutout=5), Normalize((0.0,) * 3, (1 / 255,) * 3), 3)
    mixer = Mixer(MixSpec(mixup=1.0, cutmix=1.0), 3)
    mine, other = (mixer(batch.with_images(augment(batch.images, batch.index, 0)), 0, 0) for batch in (ours, theirs))
    assert torch.equal(mine.partners.weight, other.partners.weight)
    assert torch.equal(mine.partners.index, other.partners.index)
    torch.testing.assert_close(mine.images, other.images, rtol=0, atol=1.01 * AT_EDGES.get(kind, 1))
