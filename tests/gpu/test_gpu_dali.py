"""DALI on a real GPU: decoded, cut and resized there, the same samples as on the CPU, with nothing to wait for."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from device_waits import no_device_waits
from torch import Tensor

from rlpheads.kernels.gpu.triton_labels import gather_by_triton
from rlpheads.kernels.label_source import gather_labels
from rlpheads.loaders.adapters.dali_options import DaliOptions
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.delivery import deliver
from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.datasets import ImageSource, open_dataset
from rlpheads.memorization.heads.labels import label_table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="decodes on a CUDA device, and there is none"),
]
CROP = CropSpec(64)
GPU = DaliOptions(device_id=0)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> ImageSource:
    root = tmp_path_factory.mktemp("photographs") / "tree"
    script = Path(__file__).parent.parent.parent / "benchmarks" / "make_photo_tree.py"
    command = [sys.executable, str(script), str(root), "--train", "103", "--val", "8"]
    subprocess.run(command, check=True, capture_output=True)
    return open_dataset("imagefolder", root, seed=0)[0]


def batches_of(source: ImageSource, dali: DaliOptions | None, *, train: bool = True, **options) -> list[Batch]:
    order = Order(source.manifest.num_samples, 24, 3, shuffle=train, partial="pad")
    kind = "torch" if dali is None else "dali"
    options = LoaderOptions(num_workers=2, **options)
    return list(make_loader(kind, source, order, CROP, train=train, options=options, dali=dali))


@pytest.mark.parametrize("share", [0.0, 0.65, 1.0])
@pytest.mark.parametrize("train", [True, False])
def test_batches_on_the_gpu_are_those_on_the_cpu(photographs, train, share):
    """JPEG decoders differ by a level here and there; a crop that is off, or a neighbour's picture, by tens."""
    options = DaliOptions(device_id=0, hardware_share=share, largest_image=(500, 375))
    for ours, theirs in zip(
        batches_of(photographs, options, train=train), batches_of(photographs, None, train=train), strict=True
    ):
        assert ours.images.is_cuda
        assert ours.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours.index.cpu(), theirs.index)
        assert torch.equal(ours.targets.cpu(), theirs.targets)
        difference = (ours.images.cpu().float() - theirs.images.float()).abs().mean(dim=(1, 2, 3))
        assert difference.mean() < 0.75
        assert difference.max() < 2


def test_a_resumed_epoch_is_the_same_to_the_bit(photographs):
    order = Order(103, 8, seed=3)
    first, again = (
        make_loader("dali", photographs, order, CROP, train=True, options=LoaderOptions(num_workers=2), dali=GPU)
        for _ in range(2)
    )
    whole = [batch.images.clone() for batch in first]
    again.set_epoch(0, 5 * 8)
    assert all(torch.equal(batch.images, theirs) for batch, theirs in zip(again, whole[5:], strict=True))


def test_kept_batches_stay_as_they_are(photographs):
    kept = batches_of(photographs, GPU)
    copies = [batch.images.clone() for batch in kept]
    batches_of(photographs, GPU)
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(kept, copies, strict=True))


def test_a_step_that_follows_waits_for_the_pixels_and_the_host_for_nothing(photographs):
    """Delivered batches are used on the present stream at once, while synchronising is forbidden."""
    order = Order(103, 8, seed=3)
    options = LoaderOptions(num_workers=2)
    loader = deliver(
        make_loader("dali", photographs, order, CROP, train=True, options=options, dali=GPU), torch.device("cuda", 0)
    )
    table_MN = label_table(103, 1000, num_draws=2, seed=0, split="train", device="cuda")

    def step(batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.images.sum(), gather_labels([(table_MN, batch.index, 1)], gather_by_triton)

    expected = []
    batches = iter(loader)
    arrived = [step(next(batches))]  # compiles
    with no_device_waits():
        arrived.extend(step(batch) for batch in islice(batches, 6))
    again = make_loader("dali", photographs, order, CROP, train=True, options=options, dali=GPU)
    for batch in islice(again, 7):
        torch.cuda.synchronize()
        expected.append((batch.images.sum(), table_MN[1, batch.index].long()))
    assert all(
        torch.equal(*pair) for mine, its in zip(arrived, expected, strict=True) for pair in zip(mine, its, strict=True)
    )


def test_unreadable_files_are_named_or_black_on_the_gpu_too(photographs, tmp_path):
    root = tmp_path / "tree"
    for number, data in enumerate(
        [photographs.encoded(0), b"no image", photographs.encoded(1)[:-9], photographs.encoded(2)]
    ):
        for split in ("train", "val"):
            folder = root / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.jpg").write_bytes(data)
    source, _ = open_dataset("imagefolder", root, seed=0)
    (batch,) = batches_of(source, GPU, train=False, on_error="skip")
    bad = sorted(error.index for error in batch.skipped)
    assert len(bad) == 2
    assert not batch.images[bad].any()
    assert batch.index.tolist()[:4] == [-1 if row in bad else row for row in range(4)]
    with pytest.raises(ImageReadError, match=rf"image {bad[0]} "):
        batches_of(source, GPU, train=False)
