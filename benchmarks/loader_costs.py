"""What a loader costs beside decoding: host time of order, index, labels and crops, and memory of the list of files."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import set_start_method
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from loader_contenders import resident
from torch import Tensor

from rlpheads.loaders.batch import LoaderOptions
from rlpheads.loaders.crops import CropSpec, keyed_crops
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.manifest import Manifest
from rlpheads.loaders.order import Int64Array, Order

IMAGENET = 1_281_167
_STEPS = 200


def host_costs(num_samples: int, num_rows: int, repeats: int) -> dict[str, float]:
    """Time what is done on the host for each batch of a rank, in microseconds of CPU time a sample.

    Args:
        num_samples: Samples of the split.
        num_rows: Rows of a rank's batch, of which a worker draws the crops at once.
        repeats: How often; the median counts.

    Returns:
        order (the epoch's permutation, shared out over its samples), index (the rank's slice), labels (the class of each
        row), crops (boxes and flips of images of 375 x 500), and their sum.
    """
    order = Order(num_samples, num_rows)
    targets_N = np.zeros(num_samples, dtype=np.int64)
    sizes_B2 = np.tile([375, 500], (num_rows, 1))
    rows = [step % order.num_steps for step in range(_STEPS)]
    found: dict[str, list[float]] = {name: [] for name in ("order", "index", "labels", "crops")}

    def keep(name: str, num_items: int, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.thread_time()
        result = call(*arguments)
        found[name].append(1e6 * (time.thread_time() - start) / num_items)
        return result

    for epoch in range(repeats):
        indices_N = keep("order", num_samples, order.epoch_indices, epoch)
        batches = keep("index", _STEPS * num_rows, _slices, order, indices_N, rows)
        keep("labels", _STEPS * num_rows, _labels, targets_N, batches)
        keep("crops", _STEPS * num_rows, _crops, epoch, batches, sizes_B2)
    costs = {name: median(values) for name, values in found.items()}
    return costs | {"sum": sum(costs.values())}


def _slices(order: Order, indices_N: Int64Array, steps: list[int]) -> list[Int64Array]:
    return [order.rank_slice(indices_N, step, 0, 1) for step in steps]


def _labels(targets_N: Int64Array, batches: list[Int64Array]) -> list[Tensor]:
    return [torch.from_numpy(targets_N[index_B]) for index_B in batches]


def _crops(epoch: int, batches: list[Int64Array], sizes_B2: Int64Array) -> None:
    for index_B in batches:
        keyed_crops(CropSpec(224), 0, epoch, index_B, sizes_B2)


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

    Proportional set size of a loader over `num_samples` less that of one over ten thousand after as many batches; call it
    in a fresh process.
    """
    set_start_method("fork", force=True)  # as in a training, whatever started this process
    small = _resident_while_loading(imagenet_like(10_000), num_workers, num_batches)
    return _resident_while_loading(imagenet_like(num_samples), num_workers, num_batches) - small


def _resident_while_loading(manifest: Manifest, num_workers: int, num_batches: int) -> int:
    order = Order(manifest.num_samples, 250)
    loader = make_loader(
        "torch", _Named(manifest), order, CropSpec(8), train=True, options=LoaderOptions(num_workers=num_workers)
    )
    batches = iter(loader)
    for _ in range(num_batches):
        next(batches)
    gc.collect()
    return resident(os.getpid())
