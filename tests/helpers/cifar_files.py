"""Small CIFAR archives in the official layout, and their MD5 sums, so that torchvision's own check reads and passes them."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar(name: str, root: Path, monkeypatch: pytest.MonkeyPatch, rows: int = 20) -> dict[str, np.ndarray]:
    """Write the archive's folder with `rows` images in each file; return {file: uint8 (rows, 3072)}.

    The reader's table of official MD5 sums is replaced by these files' own for the length of the test.
    """
    reader = getattr(torchvision.datasets, name.upper())
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    fine = name == "cifar100"
    classes = [f"class {number:02d}" for number in range(100)] if fine else CIFAR10_CLASSES
    pixels = {}
    for list_name in ("train_list", "test_list"):
        sums = []
        for seed, (file, _) in enumerate(getattr(reader, list_name)):
            random = np.random.default_rng([seed, len(list_name)])
            pixels[file] = random.integers(0, 256, (rows, 3072), dtype=np.uint8)
            labels = [int(label) for label in random.permutation(rows) % len(classes)]
            entry = {"data": pixels[file], "fine_labels" if fine else "labels": labels}
            sums.append([file, _dump(folder / file, entry)])
        monkeypatch.setattr(reader, list_name, sums)
    meta = {**reader.meta, "md5": _dump(folder / reader.meta["filename"], {reader.meta["key"]: classes})}
    monkeypatch.setattr(reader, "meta", meta)
    return pixels


def _dump(path: Path, content: object) -> str:
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()
