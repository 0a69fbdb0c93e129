"""Workers under real signals, and under the spawn start method."""

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

from rlpheads.loaders.batch import Batch, Loader, LoaderOptions
from rlpheads.loaders.crops import CropSpec
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.order import Order
from rlpheads.loaders.torch_loader import LoaderError


def start(digits, **options) -> tuple[Loader, Iterator[Batch], list[int]]:
    """A loader whose workers run, its iterator after one batch, and the workers' process ids."""
    before = {process.pid for process in multiprocessing.active_children()}
    order = Order(1437, 32, seed=0)
    loader = make_loader("torch", digits[0], order, CropSpec(16), train=True, options=LoaderOptions(**options))
    batches = iter(loader)
    next(batches)
    return loader, batches, [child.pid for child in multiprocessing.active_children() if child.pid not in before]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_workers_ignore_the_signals_that_stop_a_run(digits, name):
    """A launcher signals the whole group; the parent must still be able to finish its step and save."""
    loader, batches, workers = start(digits, num_workers=2)
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, getattr(signal, name))
    time.sleep(0.2)
    rest = list(batches)
    assert len(rest) == len(loader) - 1
    loader.set_epoch(1)
    assert len(list(loader)) == len(loader)
    assert {process.pid for process in multiprocessing.active_children()} >= set(workers)


def test_a_killed_worker_ends_the_epoch_with_a_clear_error(digits):
    loader, batches, workers = start(digits, num_workers=2, prefetch=1)
    consumed = loader.state_dict()["consumed"]
    with pytest.raises(LoaderError, match=r"a loader worker died; the usual cause is memory.*Killed"):  # noqa: PT012
        os.kill(workers[0], signal.SIGKILL)
        for _ in batches:
            consumed += 32
    assert loader.state_dict() == {"epoch": 0, "consumed": consumed}


def test_workers_end_with_their_loader(digits):
    loader, batches, workers = start(digits, num_workers=2)
    del loader, batches
    for worker in workers:
        for _ in range(100):
            if worker not in {process.pid for process in multiprocessing.active_children()}:
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"worker {worker} still runs")


SPAWN_SCRIPT = """
import multiprocessing
import sys

import torch

from rlpheads.loaders.batch import LoaderOptions
from rlpheads.loaders.crops import CropSpec
from rlpheads.loaders.datasets import open_dataset
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.order import Order

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    source, _ = open_dataset("digits", seed=0)
    loader = make_loader(
        "torch", source, Order(1437, 700, seed=0), CropSpec(16), train=True, options=LoaderOptions(num_workers=1)
    )
    batches = [(batch.index, batch.images) for batch in loader]
    assert "sklearn" not in sys.modules, "reading the digits imported scikit-learn"
    torch.save(batches, sys.argv[1])
"""


def test_a_spawned_worker_makes_the_same_batches_without_scikit_learn(digits, tmp_path: Path):
    (tmp_path / "read.py").write_text(SPAWN_SCRIPT)
    command = [sys.executable, str(tmp_path / "read.py"), str(tmp_path / "batches.pt")]
    subprocess.run(command, check=True, timeout=300)
    here = make_loader("torch", digits[0], Order(1437, 700, seed=0), CropSpec(16), train=True)
    for (index, images), batch in zip(torch.load(tmp_path / "batches.pt"), here, strict=True):
        assert torch.equal(index, batch.index)
        assert torch.equal(images, batch.images)
