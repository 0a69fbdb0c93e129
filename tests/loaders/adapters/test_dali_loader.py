"""The DALI loader beside torch's: what it reads, when it stops, and that nothing of it is left behind."""

import gc
import os
import random
import re
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from loader_kinds import loader_of
from loader_libraries import require_library

from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.canary_source import CanarySpec, insert_canaries
from rlpheads.loaders.sources.datasets import ImageSource, open_dataset
from rlpheads.loaders.sources.subset import take_subset

CROP = CropSpec(32)
NAMES = [f"{number:02d}" for number in range(12)]


@pytest.fixture(scope="module", autouse=True)
def _dali():
    require_library("dali")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> ImageSource:
    """JPEGs cut from photographs, as they come."""
    root = tmp_path_factory.mktemp("photographs") / "tree"
    script = Path(__file__).parents[3] / "benchmarks" / "make_photo_tree.py"
    command = [sys.executable, str(script), str(root), "--train", "40", "--val", "8"]
    subprocess.run(command, check=True, capture_output=True)
    return open_dataset("imagefolder", root, seed=0)[0]


def differences(source: ImageSource, crop: CropSpec, *, train: bool) -> torch.Tensor:
    """Mean difference of each image between DALI and torch, in levels."""
    pairs = zip(
        loader_of("dali", source, crop, 16, train=train, num_workers=2),
        loader_of("torch", source, crop, 16, train=train),
        strict=True,
    )
    found = []
    for ours, theirs in pairs:
        assert torch.equal(ours.index, theirs.index)
        found.append((ours.images.float() - theirs.images.float()).abs().mean(dim=(1, 2, 3))[ours.index >= 0])
    return torch.cat(found)


@pytest.mark.long
@pytest.mark.parametrize("image_size", [32, 224])
def test_photographs_look_as_in_torchvision(photographs, image_size):
    evaluated = differences(photographs, CropSpec(image_size), train=False)
    trained = differences(photographs, CropSpec(image_size), train=True)
    assert evaluated.mean() < 0.2
    assert trained.mean() < 0.25
    assert torch.cat([evaluated, trained]).max() < 0.5


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".gif", ".tiff", ".ppm"])
def test_all_formats_are_read_as_torch_reads_them(write_tree, suffix):
    names = [name + suffix for name in NAMES]
    source, _ = open_dataset("imagefolder", write_tree({"a": names, "b": names}), val_fraction=0.2, seed=0)
    for train in (False, True):
        assert differences(source, CropSpec(16), train=train).max() < 0.5


def test_images_without_files_are_read_too(digits):
    assert differences(digits[0], CropSpec(8, crop_fraction=1), train=False).max() == 0
    assert differences(digits[0], CropSpec(16), train=True).max() < 0.5


def test_copied_canaries_and_subsets_are_those_of_torch(photographs):
    planted = insert_canaries(
        photographs, CanarySpec(mislabelled=2, repeated=2, repeats=(3,), near_duplicates=4), seed=5
    )
    source = take_subset(planted, 0.7, None, seed=1)
    assert planted.manifest.num_samples == 48
    assert differences(source, CROP, train=False).max() < 0.5
    dali, torchs = (loader_of(kind, source, CROP, 16) for kind in ("dali", "torch"))
    for ours, theirs in zip(dali, torchs, strict=True):
        assert torch.equal(ours.targets, theirs.targets)


def test_an_epoch_is_the_same_again_at_any_number_of_threads(photographs):
    """To the bit: threads and what was read before leave no trace."""
    first, again, more = (list(loader_of("dali", photographs, CROP, 16, num_workers=n)) for n in (0, 1, 3))
    for batch, *others in zip(first, again, more, strict=True):
        assert all(torch.equal(batch.images, other.images) for other in others)


def test_a_loader_goes_on_where_another_stopped_to_the_bit(photographs):
    whole = list(loader_of("dali", photographs, CROP, 8))
    for num_read in (0, 1, 3, 5):
        stopped, resumed = (loader_of("dali", photographs, CROP, 8, num_workers=2) for _ in range(2))
        before = list(islice(stopped, num_read))
        assert stopped.state_dict() == {"epoch": 0, "consumed": 8 * num_read}
        resumed.load_state_dict(stopped.state_dict())
        for rest in (list(resumed), list(stopped)):
            for ours, theirs in zip(before + rest, whole, strict=True):
                assert torch.equal(ours.images, theirs.images)


def test_a_new_iteration_ends_the_one_before(photographs):
    loader = loader_of("dali", photographs, CROP, 8)
    first = iter(loader)
    next(first)
    assert len(list(loader)) == len(loader) - 1
    assert list(first) == []
    loader.set_epoch(1)
    assert len(list(loader)) == len(loader)
    assert list(loader) == []


def test_a_rank_without_a_sample_left_gets_black_rows(photographs):
    loader = loader_of("dali", photographs, CROP, 36, train=False, rank=2, world_size=3)
    first, last = loader
    assert first.index.tolist() == list(range(24, 36))
    assert last.index.tolist() == [-1] * 12
    assert not last.images.any()
    assert not last.targets.any()
    assert last.num_global_rows == 4


def test_no_global_generator_is_touched(photographs):
    before = torch.get_rng_state(), random.getstate()
    list(loader_of("dali", photographs, CROP, 16, num_workers=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


TASKS = Path("/proc/self/task")


def wait_for_the_end_of(threads: set[Path]) -> None:
    for _ in range(100):
        if not any(thread.exists() for thread in threads):
            return
        time.sleep(0.05)
    pytest.fail("threads are left")


def stop_signals_let_through(thread: Path) -> bool:
    status = (thread / "status").read_text()
    mask = int(re.search(r"^SigBlk:\s*(\w+)", status, re.MULTILINE)[1], 16)
    return not all(mask >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))


def test_its_threads_leave_the_stop_signals_alone_and_end_with_it(photographs):
    """By reference counts alone, as they do not wait for a collector."""
    before = set(TASKS.iterdir())
    loader = loader_of("dali", photographs, CROP, 8, num_workers=2)
    batches = iter(loader)
    next(batches)
    threads = set(TASKS.iterdir()) - before
    assert len(threads) > 2
    assert not [thread for thread in threads if stop_signals_let_through(thread)]
    gc.disable()
    try:
        del batches, loader
        wait_for_the_end_of(threads)
    finally:
        gc.enable()


def test_threads_of_an_evaluation_end_with_its_epoch(photographs):
    loader = loader_of("dali", photographs, CROP, 8, train=False, keep_workers=False)
    before = set(TASKS.iterdir())
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches = iter(loader)
        next(batches)
        threads = {task for task in set(TASKS.iterdir()) - before if "DALI" in (task / "comm").read_text()}
        assert threads
        assert len(list(batches)) == 4
        wait_for_the_end_of(threads)


SCRIPT = """
import os, signal, sys
from loader_kinds import loader_of
from loader_libraries import require_library
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.sources.datasets import open_dataset

stops = []
signal.signal(signal.SIGTERM, lambda *_: stops.append(1))
source, _ = open_dataset("imagefolder", sys.argv[1], seed=0)
loader = loader_of("dali", source, CropSpec(32), 8, num_workers=2)
seen = 0
for batch in loader:
    seen += batch.num_global_rows
    os.kill(os.getpid(), signal.SIGTERM)
print(seen, len(stops), flush=True)
loader.set_epoch(1)
for batch in loader:
    break
# The loader still lives, with batches in the making.
"""


@pytest.mark.long
def test_a_process_under_signals_reads_all_and_exits(photographs, tmp_path):
    (tmp_path / "read.py").write_text(SCRIPT)
    command = [
        sys.executable,
        str(tmp_path / "read.py"),
        str(photographs.manifest.root.parent),
    ]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "40 5\n", "")


@pytest.mark.parametrize(
    ("num_samples", "world_size", "message"),
    [(40, 5, "multiple of 10"), (30, 1, "order is for 30 samples, but the source has 40")],
)
def test_orders_that_do_not_fit_are_refused(photographs, num_samples, world_size, message):
    from rlpheads.loaders.contract.options import LoaderOptions

    with pytest.raises(ValueError, match=message):
        make_loader(
            "dali", photographs, Order(num_samples, 8), CROP, train=True, options=LoaderOptions(world_size=world_size)
        )


def test_a_position_of_another_batch_size_is_refused(photographs):
    with pytest.raises(ValueError, match="no step begins after 12 samples"):
        loader_of("dali", photographs, CROP, 8).set_epoch(0, 12)
