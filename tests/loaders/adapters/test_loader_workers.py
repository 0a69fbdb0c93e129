"""Workers under real signals, and under both ways to start them."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import ImageReadError, LoaderError
from rlpheads.loaders.contract.loader import Loader
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.datasets import open_dataset


def start(digits, **options) -> tuple[Loader, Iterator[Batch], list[int]]:
    """A loader whose workers run, its iterator after one batch, and the workers' process ids."""
    before = {process.pid for process in multiprocessing.active_children()}
    order = Order(1437, 32, seed=0)
    loader = make_loader("torch", digits[0], order, CropSpec(16), train=True, options=LoaderOptions(**options))
    batches = iter(loader)
    next(batches)
    return loader, batches, [child.pid for child in multiprocessing.active_children() if child.pid not in before]


@pytest.mark.long
@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_workers_ignore_the_signals_that_stop_a_run(digits, name):
    """A launcher signals the whole group; the parent must still be able to finish its step and save."""
    loader, batches, workers = start(digits, num_workers=2)
    assert len(workers) == 2
    for _ in range(3):
        subprocess.run(["kill", f"-{name}", *map(str, workers)], check=True)
    time.sleep(0.2)
    rest = list(batches)
    assert len(rest) == len(loader) - 1
    loader.set_epoch(1)
    assert len(list(loader)) == len(loader)
    assert {process.pid for process in multiprocessing.active_children()} >= set(workers)


@pytest.fixture(autouse=True)
def no_handler_of_other_tests():
    """Take back torch's handler of dead children, which a DataLoader of another test may have set in this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@pytest.mark.long
def test_a_killed_worker_ends_the_epoch_with_a_clear_error(digits):
    """The error comes out of the loader, not out of whatever the parent was doing when the worker died."""
    loader, batches, workers = start(digits, num_workers=2, prefetch=1)
    os.kill(workers[0], signal.SIGKILL)
    time.sleep(0.3)
    consumed = loader.state_dict()["consumed"]
    with pytest.raises(LoaderError, match=rf"a loader worker died.*; .*memory.*{workers[0]}"):  # noqa: PT012
        for _ in batches:
            consumed += 32
    assert loader.state_dict() == {"epoch": 0, "consumed": consumed}


def wait_for_the_end_of(workers: list[int]) -> None:
    for worker in workers:
        for _ in range(50):
            if worker not in {process.pid for process in multiprocessing.active_children()}:
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"worker {worker} still runs")


def test_workers_end_with_their_loader(digits):
    loader, batches, workers = start(digits, num_workers=2)
    del loader, batches
    wait_for_the_end_of(workers)


def test_workers_end_after_an_unreadable_image(write_tree):
    """By reference counts alone: an error that keeps its loader in a cycle would leave the workers to the collector."""
    before = {process.pid for process in multiprocessing.active_children()}
    root = write_tree({f"{split}/{label}": ["1.png", "2.png"] for split in ("train", "val") for label in "ab"})
    (root / "train" / "a" / "1.png").write_bytes(b"no image")
    source, _ = open_dataset("imagefolder", root, seed=0)
    order, options = Order(4, 2, shuffle=False), LoaderOptions(num_workers=2)
    gc.disable()
    try:
        loader = make_loader("torch", source, order, CropSpec(16), train=True, options=options)
        workers = []
        try:
            next(iter(loader))
        except ImageReadError:
            workers = [child.pid for child in multiprocessing.active_children() if child.pid not in before]
        assert len(workers) == 2
        del loader
        wait_for_the_end_of(workers)
    finally:
        gc.enable()


SCRIPT = """
import multiprocessing
import os
import sys

import psutil
import torch

from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.sources.datasets import open_dataset
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.contract.order import Order

if __name__ == "__main__":
    source, _ = open_dataset("digits", seed=0)
    assert "sklearn" not in sys.modules, "reading the digits imported scikit-learn"
    loaders, batches = [], []
    for start_method in ("fork", "spawn", "forkserver"):
        multiprocessing.set_start_method(start_method, force=True)
        order, options = Order(1437, 700, seed=0), LoaderOptions(num_workers=1)
        loaders.append(make_loader("torch", source, order, CropSpec(16), train=True, options=options))
        for batch in loaders[-1]:
            batches.append((batch.index, batch.images))
            parents = {psutil.Process(worker.pid).ppid() for worker in multiprocessing.active_children()}
            assert parents == {os.getpid()}, "a worker ends when its parent is killed"
    torch.save(batches, sys.argv[1])
    # The loaders still live: leaving must end their workers, deaf as these are to what others send.
"""


@pytest.mark.long
def test_a_process_reads_and_exits_however_its_children_are_started(digits, tmp_path: Path):
    (tmp_path / "read.py").write_text(SCRIPT)
    subprocess.run([sys.executable, str(tmp_path / "read.py"), str(tmp_path / "batches.pt")], check=True, timeout=120)
    here = list(make_loader("torch", digits[0], Order(1437, 700, seed=0), CropSpec(16), train=True))
    for (index, images), batch in zip(torch.load(tmp_path / "batches.pt"), here * 3, strict=True):
        assert torch.equal(index, batch.index)
        assert torch.equal(images, batch.images)
