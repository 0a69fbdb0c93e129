"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 32 × 32 colour photographs, read from the official files by torchvision."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.manifest import Manifest

SIDE = 32


@dataclass(frozen=True)
class CifarSource:
    """A split of CIFAR in memory.

    Attributes:
        manifest: The split; names are cifar10/CLASS/ROW with the row in the official files.
        images: uint8 (N, 32, 32, 3), in the files' order.
        rows: int64 (N,), row of each canonical index.
    """

    manifest: Manifest
    images: Tensor
    rows: Tensor

    def read(self, index: int) -> Tensor:
        """Return one image: uint8 (3, 32, 32)."""
        return self.images[self.rows[index]].permute(2, 0, 1)


def open_cifar(name: str, root: Path, *, download: bool = False) -> tuple[CifarSource, CifarSource]:
    """Return the official training and test images (50,000 and 10,000), the latter as split "val".

    Args:
        name: "cifar10" or "cifar100" (its 100 fine classes).
        root: Folder that holds, or is to hold, the official archive's own folder.
        download: Fetch the archive where it is missing; one process of a machine does, the others wait for it.

    Raises:
        DatasetError: If the files are missing or are not the official ones, or the download fails.
    """
    import torchvision.datasets  # takes a second, which the other data sets need not pay

    reader = getattr(torchvision.datasets, name.upper())
    if download:
        with _exclusive_lock(root):
            return _read(name, reader, root, download=True)
    if not (root / reader.base_folder).is_dir():
        raise DatasetError(
            f"{root} has no folder {reader.base_folder}: point data.root at the folder that holds it, unpack "
            f"{reader.filename} there, or let it be fetched with data.download"
        )
    return _read(name, reader, root, download=False)


def _read(name: str, reader: Any, root: Path, *, download: bool) -> tuple[CifarSource, CifarSource]:
    try:
        train, test = (reader(root, train=train, download=download) for train in (True, False))
    except OSError as error:
        raise DatasetError(f"{reader.filename} cannot be fetched into {root}: {error}") from error
    except RuntimeError as error:  # torchvision's word for a file whose MD5 is not the official one
        raise DatasetError(
            f"{root / reader.base_folder} is incomplete or damaged (its files' MD5 sums are not the official ones): "
            f"unpack {reader.filename} again, or remove the folder and set data.download"
        ) from error
    return _source(name, train, "train"), _source(name, test, "val")


def _source(name: str, dataset: Any, split: str) -> CifarSource:
    """Put the images into canonical order: by class name, then by row."""
    classes = tuple(sorted(dataset.classes))
    position = np.array([classes.index(label) for label in dataset.classes])
    targets_N = position[np.asarray(dataset.targets)]
    rows_N = np.argsort(targets_N, kind="stable")
    names = [f"{name}/{classes[targets_N[row]]}/{row:05d}".encode() for row in rows_N]
    manifest = Manifest.from_columns(
        names, targets_N[rows_N], np.full(len(names), 3 * SIDE * SIDE), classes=classes, root=None, split=split
    )
    return CifarSource(manifest, torch.from_numpy(dataset.data), torch.from_numpy(rows_N))


@contextmanager
def _exclusive_lock(root: Path) -> Iterator[None]:
    """Hold a lock file in the root, so that the ranks of one machine do not fetch into each other's files."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".rlpheads-download.lock").open("w")
    except OSError as error:
        raise DatasetError(f"{root} cannot be written to, where CIFAR was to be fetched: {error.strerror}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
