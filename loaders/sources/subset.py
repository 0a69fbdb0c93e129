"""Subsets of a split: a fraction of every class, the same number of each, or fewer from class to class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.decoding.decode import reindexed_errors
from rlpheads.loaders.sources.datasets import EncodedSource, ImageSource
from rlpheads.loaders.sources.splits import lowest_hashes_per_class


@dataclass(frozen=True)
class SubsetSource:
    """Some samples of a source, with canonical indices of their own.

    Attributes:
        manifest: The kept samples.
        source: The whole split.
        rows: int64 (N,), index in the whole split of each kept sample.
    """

    manifest: Manifest
    source: ImageSource
    rows: Int64Array

    def read(self, index: int) -> Tensor:
        """Read one image: uint8 (3, H, W).

        Raises:
            ImageReadError: If it cannot be read; with the index in the subset.
        """
        with reindexed_errors(index):
            return self.source.read(int(self.rows[index]))

    def encoded(self, index: int) -> bytes | None:
        """Return the bytes of an image's file; None where there is none.

        Raises:
            ImageReadError: If it cannot be read; with the index in the subset.
        """
        with reindexed_errors(index):
            return self.source.encoded(int(self.rows[index])) if isinstance(self.source, EncodedSource) else None

    def decode(self, index: int, data: bytes) -> Tensor:
        """Decode what `encoded` returned: uint8 (3, H, W).

        Raises:
            ImageReadError: If it is not a whole image; with the index in the subset.
        """
        assert isinstance(self.source, EncodedSource)
        with reindexed_errors(index):
            return self.source.decode(int(self.rows[index]), data)


def take_subset(
    source: ImageSource, fraction: float, per_class: int | None, seed: int, *, imbalance: float = 1.0
) -> ImageSource:
    """Return part of a source; the very source if that is all of it.

    In each class the samples with the least hashes of (seed, name) stay, so the choice depends neither on the order of the
    files nor on a generator, and a smaller subset of the same seed lies within a larger one.

    Args:
        source: The split.
        fraction: How much of each class is kept, in (0, 1]; rounded up, so that no class is lost.
        per_class: Samples of each class that are kept, alike for all; None: by `fraction` alone.
        seed: Key of the choice.
        imbalance: How many times the share of the last class the first one keeps of what the others say, at least 1: class c
            of C keeps imbalance^(−c/(C − 1)) of it, rounded up.

    Source: the long-tailed CIFAR of Cui et al., Class-Balanced Loss (CVPR 2019).

    Raises:
        DatasetError: If a class has fewer samples than `per_class`, or both ways are asked for at once.
    """
    if per_class is None and fraction == 1 and imbalance == 1:
        return source
    if per_class is not None and fraction != 1:
        raise DatasetError(
            f"a subset is given by a fraction ({fraction}) or by a number of each class ({per_class}), not both"
        )
    manifest = source.manifest
    counts_C = np.bincount(manifest.targets, minlength=len(manifest.classes))
    if per_class is not None and per_class > counts_C.min():
        least = manifest.classes[int(counts_C.argmin())]
        raise DatasetError(
            f"split {manifest.split!r} cannot give {per_class} samples of every class: {least!r} has {counts_C.min()}"
        )
    # The rounding keeps 0.07 × 100 = 7.000000000000001 at 7.
    shares_C = np.maximum(np.ceil(np.round(fraction * counts_C, 6)).astype(np.int64), np.minimum(counts_C, 1))
    quotas_C = shares_C if per_class is None else np.full_like(shares_C, per_class)
    keep_N = lowest_hashes_per_class(manifest, _long_tailed(quotas_C, imbalance), seed)
    return SubsetSource(manifest.select(keep_N, manifest.split), source, np.flatnonzero(keep_N))


def _long_tailed(quotas_C: Int64Array, imbalance: float) -> Int64Array:
    """Thin the quotas out from class to class, the last one by `imbalance`; no class that has images is lost."""
    if imbalance == 1 or len(quotas_C) == 1:
        return quotas_C
    depth_C = np.arange(len(quotas_C)) / (len(quotas_C) - 1)
    return np.ceil(np.round(quotas_C * imbalance**-depth_C, 6)).astype(np.int64)
