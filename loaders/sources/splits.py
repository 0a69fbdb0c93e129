"""Stratified train and validation splits of a dataset that comes without one."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.manifest import Manifest

DEFAULT_VAL_FRACTION = 0.2
"""Of data sets that need no folder and come without a split."""


def check_val_fraction(val_fraction: float) -> None:
    """Check that a held-out fraction is in (0, 1).

    Raises:
        DatasetError: If it is not.
    """
    if not 0 < val_fraction < 1:
        raise DatasetError(f"val_fraction is {val_fraction}; the held-out fraction of each class must be in (0, 1)")


def stratified_split(manifest: Manifest, val_fraction: float, seed: int) -> tuple[Manifest, Manifest]:
    """Hold out a fraction of every class.

    In each class the samples with the least hashes of (seed, name) are held out, so a split depends neither on where
    the files lie nor on a generator, and adding or removing a file moves at most one other sample of any class.

    Returns:
        The splits "train" and "val", with at least one sample of every class in both.

    Raises:
        DatasetError: For a fraction outside (0, 1), or a class of fewer than two samples.
    """
    check_val_fraction(val_fraction)
    counts_C = np.bincount(manifest.targets, minlength=len(manifest.classes))
    if counts_C.min() < 2:
        lone = manifest.classes[int(counts_C.argmin())]
        raise DatasetError(
            f"class {lone!r} has {counts_C.min()} image(s); val_fraction needs at least 2 in every class, one to "
            f"train on and one to hold out"
        )
    held_out_N = lowest_hashes_per_class(manifest, _held_out_counts(counts_C, val_fraction), seed)
    return manifest.select(~held_out_N, "train"), manifest.select(held_out_N, "val")


def lowest_hashes_per_class(manifest: Manifest, quotas_C: Int64Array, seed: int) -> NDArray[np.bool_]:
    """Mark the `quotas_C[c]` samples of each class c that have the least hashes of (seed, name): bool (N,)."""
    counts_C = np.bincount(manifest.targets, minlength=len(manifest.classes))
    by_class_and_hash = np.lexsort((_name_hashes(manifest, seed), manifest.targets))
    rank_in_class = np.arange(manifest.num_samples) - np.repeat(np.cumsum(counts_C) - counts_C, counts_C)
    marked_N = np.zeros(manifest.num_samples, dtype=bool)
    marked_N[by_class_and_hash] = rank_in_class < np.repeat(quotas_C, counts_C)
    return marked_N


def _held_out_counts(counts_C: Int64Array, val_fraction: float) -> Int64Array:
    """Share ceil(fraction × N) out over the classes, largest remainders first, with at least one on each side."""
    exact_C = val_fraction * counts_C
    quotas_C = np.clip(np.floor(exact_C).astype(np.int64), 1, counts_C - 1)
    # The rounding keeps 0.07 × 100 = 7.000000000000001 at 7.
    total = math.ceil(round(val_fraction * int(counts_C.sum()), 6))
    missing_C = np.where(quotas_C < counts_C - 1, exact_C - quotas_C, -np.inf)
    most_missing_first = np.argsort(-missing_C, kind="stable")[: max(0, total - int(quotas_C.sum()))]
    quotas_C[most_missing_first] += missing_C[most_missing_first] > 0
    return quotas_C


def _name_hashes(manifest: Manifest, seed: int) -> Int64Array:
    """Return a 64-bit hash of (seed, name) for every sample, uint64 (N,)."""
    key = str(seed).encode()
    hashes = (hashlib.blake2b(name, digest_size=8, key=key).digest() for name in manifest.names())
    return np.frombuffer(b"".join(hashes), dtype="<u8")
