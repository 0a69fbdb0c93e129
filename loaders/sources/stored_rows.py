"""Which image of a store each sample of a source is, also where the source is a subset or has canaries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.sources.beton import BetonSource
from rlpheads.loaders.sources.canary_source import CanarySource
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.loaders.sources.subset import SubsetSource


@dataclass(frozen=True)
class StoredRows:
    """Where in a store each sample of a source lies.

    Attributes:
        store: The .beton file.
        rows_N: int64 (N,), position in the store of each sample.
        darker_N: bool (N,), which samples are made a tenth darker.
    """

    store: BetonSource
    rows_N: Int64Array
    darker_N: NDArray[np.bool_]


class NoStoreError(DatasetError):
    """Images that lie in no store, for a loader that reads stores only."""


def find_stored_rows(source: ImageSource) -> StoredRows:
    """Follow a source to the store behind it.

    Raises:
        NoStoreError: If there is none, with how to make one.
    """
    if isinstance(source, BetonSource):
        num_samples = source.manifest.num_samples
        return StoredRows(source, np.arange(num_samples), np.zeros(num_samples, dtype=bool))
    if isinstance(source, SubsetSource):
        whole = find_stored_rows(source.source)
        return StoredRows(whole.store, whole.rows_N[source.rows], whole.darker_N[source.rows])
    if isinstance(source, CanarySource):
        own = find_stored_rows(source.source)
        is_darker_copy = np.arange(len(source.copied)) >= source.num_exact
        return StoredRows(
            own.store,
            np.concatenate([own.rows_N, own.rows_N[source.copied]]),
            np.concatenate([own.darker_N, own.darker_N[source.copied] | is_darker_copy]),
        )
    raise NoStoreError(
        "the ffcv loader reads stores only. Make one of the images, once: rlpheads convert --data.root FOLDER --out STORE; "
        "then train with --data.root STORE --data.loader ffcv"
    )
