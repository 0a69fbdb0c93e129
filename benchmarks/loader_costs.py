"""What a loader costs beside decoding: host time of order, index, labels and crops, and memory of the list of files."""

from __future__ import annotations

import gc
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from multiprocessing import set_start_method
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.crops import CropSpec, draw_crops, place_crops
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.contract.request import Request, rank_requests
from rlpheads.loaders.factory import make_loader

IMAGENET = 1_281_167
_SAMPLES = 16_384
"""Of one epoch, at most, that are timed: draws for some thousand of them are made together."""


class _KnownOrder(Order):
    """An order that keeps its last permutation, so that what comes after it can be timed alone."""

    @lru_cache(maxsize=1)  # noqa: B019 - lives as long as one measurement
    def epoch_indices(self, epoch: int) -> Int64Array:
        """Return the canonical indices in the order of the epoch."""
        return super().epoch_indices(epoch)


def host_costs(num_samples: int, num_rows: int, repeats: int) -> dict[str, float]:
    """Time what is done on the host for each batch of a rank, in microseconds of CPU time a sample.

    Args:
        num_samples: Samples of the split.
        num_rows: Rows of a rank's batch.
        repeats: How often; the median counts.

    Returns:
        order (the epoch's permutation, shared out over its samples), index (the rank's slices, with the draws for its
        crops), labels (the class of each row), crops (boxes and flips of images of 375 x 500, whose sizes a batch tells
        when its files are open), and their sum; worker: what it takes beside them to hand a request to another process.
    """
    order = _KnownOrder(num_samples, num_rows)
    crop = CropSpec(224)
    num_steps = min(order.num_steps, _SAMPLES // num_rows)
    targets_N = np.zeros(num_samples, dtype=np.int64)
    sizes_B2 = np.tile([375, 500], (num_rows, 1))
    found: dict[str, list[float]] = {name: [] for name in ("order", "index", "labels", "crops", "worker")}

    def keep(name: str, num_items: int, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.thread_time()
        result = call(*arguments)
        found[name].append(1e6 * (time.thread_time() - start) / num_items)
        return result

    for epoch in range(repeats):
        keep("order", num_samples, order.epoch_indices, epoch)
        due = rank_requests(order, partial(draw_crops, crop, 0), epoch, 0, rank=0, world_size=1)
        asked = keep("index", num_steps * num_rows, list, islice(due, num_steps))
        keep("labels", num_steps * num_rows, _labels, targets_N, asked)
        keep("crops", num_steps * num_rows, _crops, crop, asked, sizes_B2)
        keep("worker", num_steps * num_rows, _handed_over, asked)
    costs = {name: median(values) for name, values in found.items()}
    return costs | {"sum": sum(value for name, value in costs.items() if name != "worker")}


def _labels(targets_N: Int64Array, asked: list[Request]) -> list[Tensor]:
    return [torch.from_numpy(targets_N[request.index_B]) for request in asked]


def _crops(crop: CropSpec, asked: list[Request], sizes_B2: Int64Array) -> None:
    for request in asked:
        place_crops(crop, request.draws_UB, sizes_B2)


def _handed_over(asked: list[Request]) -> list[Request]:
    return [pickle.loads(ForkingPickler.dumps(request)) for request in asked]


@dataclass(frozen=True)
class _Named:
    """A source that looks its files' names up, and whose images are all alike: nothing but the manifest takes memory."""

    manifest: Manifest

    def read(self, index: int) -> Tensor:
        """Return a small image; its name is looked up as for a file."""
        assert self.manifest.path(index).name
        return torch.zeros((3, 8, 8), dtype=torch.uint8)


def imagenet_like(num_samples: int) -> Manifest:
    """Return a manifest with ImageNet's kind of names, made as a scan makes it: from lists that are then dropped."""
    classes = tuple(f"n{number:08d}" for number in range(1000))
    per_class = -(-num_samples // len(classes))
    targets_N = np.arange(num_samples) // per_class
    names = [f"{classes[target]}/{classes[target]}_{n}.JPEG".encode() for n, target in enumerate(targets_N.tolist())]
    sizes = [100_000 + n % 50_000 for n in range(num_samples)]
    return Manifest.from_columns(names, targets_N, sizes, classes=classes, root=Path("/imagenet/train"), split="train")


def manifest_bytes(num_samples: int, num_workers: int, num_batches: int = 40) -> int:
    """Resident bytes that the list of files takes, in this process and its workers together, in the middle of an epoch.

    Data (proportional set size, without files) of a loader over `num_samples` less that of one over ten thousand after
    as many batches; call it in a fresh process.
    """
    set_start_method("fork", force=True)  # as in a training, whatever started this process
    small = _resident_while_loading(imagenet_like(10_000), num_workers, num_batches)
    return _resident_while_loading(imagenet_like(num_samples), num_workers, num_batches) - small


def _data_bytes(pid: int) -> int:
    """Memory of a process and its descendants that is no file's, in bytes; what they share is counted once.

    A library's pages are left out: a process takes the smaller part of them, the more others use the library just then.
    """
    process = psutil.Process(pid)
    lines = [
        line.split()
        for each in [process, *process.children(recursive=True)]
        for line in Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines()
    ]
    return sum(1024 * int(line[1]) for line in lines if line[0] in ("Pss_Anon:", "Pss_Shmem:"))


def _resident_while_loading(manifest: Manifest, num_workers: int, num_batches: int) -> int:
    order = Order(manifest.num_samples, 250)
    loader = make_loader(
        "torch", _Named(manifest), order, CropSpec(8), train=True, options=LoaderOptions(num_workers=num_workers)
    )
    batches = iter(loader)
    for _ in range(num_batches):
        next(batches)
    gc.collect()
    return _data_bytes(os.getpid())
