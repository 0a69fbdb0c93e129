"""The 1,797 handwritten digits that come with scikit-learn: a whole dataset that needs no download."""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.sources.splits import DEFAULT_VAL_FRACTION, stratified_split

SIDE = 8
NUM_CLASSES = 10


@dataclass(frozen=True)
class DigitsSource:
    """Some of the digits.

    Attributes:
        manifest: The split; names are digits/CLASS/ROW with the row in scikit-learn's own table.
        images: uint8 (N, 8, 8), ink as 0 to 255.
    """

    manifest: Manifest
    images: Tensor

    def read(self, index: int) -> Tensor:
        """Return one image, the same grey in all channels: uint8 (3, 8, 8)."""
        return self.images[index].expand(3, SIDE, SIDE)


def open_digits(*, val_fraction: float = DEFAULT_VAL_FRACTION, seed: int) -> tuple[DigitsSource, DigitsSource]:
    """Return the training and the held-out digits (1,437 and 360 with the default fraction).

    Raises:
        DatasetError: If scikit-learn or its table is not there, or for a fraction outside (0, 1).
    """
    whole = _read_digits()
    train, val = stratified_split(whole.manifest, val_fraction, seed)
    position = {name: place for place, name in enumerate(whole.manifest.names())}
    return (
        DigitsSource(train, whole.images[[position[name] for name in train.names()]]),
        DigitsSource(val, whole.images[[position[name] for name in val.names()]]),
    )


def _read_digits() -> DigitsSource:
    """Return all digits, sorted by class and row."""
    table_N65 = _read_table()
    rows_N = np.argsort(table_N65[:, -1], kind="stable")
    targets_N = table_N65[rows_N, -1]
    ink_NP = table_N65[rows_N, :-1]
    # The table counts black pixels in blocks of 4 × 4: 0 to 16.
    images_NHW = torch.from_numpy(np.rint(ink_NP * (255 / 16)).astype(np.uint8)).view(-1, SIDE, SIDE)
    names = [f"digits/{target}/{row:04d}".encode() for target, row in zip(targets_N, rows_N, strict=True)]
    manifest = Manifest.from_columns(
        names,
        targets_N,
        np.full(len(names), SIDE * SIDE),
        classes=tuple(str(digit) for digit in range(NUM_CLASSES)),
        root=None,
        split="all",
    )
    return DigitsSource(manifest, images_NHW)


def _read_table() -> Int64Array:
    """Read scikit-learn's table, int64 (1797, 65): 64 pixels and the digit.

    The file is read directly: importing `sklearn.datasets` for its `load_digits` takes over a second at every start.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise DatasetError("the digits come with scikit-learn, which is not installed")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise DatasetError(f"this version of scikit-learn keeps no digits at {path}")
    with gzip.open(path, "rt") as lines:
        return np.loadtxt(lines, delimiter=",", dtype=np.int64)
