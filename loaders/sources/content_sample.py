"""Hashes of some files of a split: the fingerprint covers names and sizes, and an image may be replaced by one as large."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.contract.regular_files import read_listed_file
from rlpheads.loaders.sources.datasets import EncodedSource, ImageSource

MOST_SAMPLED = 256
"""Files that are read of a split. They show with probability .92 that one in a hundred was replaced."""

_READERS = 16
_HEX_DIGITS = 16


def sample_contents(source: ImageSource) -> dict[str, str]:
    """Return the hash of up to `MOST_SAMPLED` files by canonical index; of none where the images do not lie in a tree.

    Which files is drawn from the fingerprint. Files that cannot be read are left out.
    """
    if source.manifest.root is None:
        return {}
    generator = np.random.default_rng(int(source.manifest.fingerprint[:16], 16))
    num_samples = source.manifest.num_samples
    chosen = generator.choice(num_samples, size=min(MOST_SAMPLED, num_samples), replace=False)
    return _hashes(source, sorted(chosen.tolist()))


def replaced_files(source: ImageSource, recorded: Mapping[str, str]) -> list[str]:
    """Return the names of the files whose contents are no longer those of the hashes that `sample_contents` returned.

    Nothing is compared where the images do not lie in a tree (a store that was made of it holds others), nor are files that
    cannot be read: whether they may be missing is for the loader to say.
    """
    if source.manifest.root is None:
        return []
    found = _hashes(source, [index for index in map(int, recorded) if index < source.manifest.num_samples])
    return [source.manifest.name(int(index)) for index, digest in found.items() if digest != recorded[index]]


def _hashes(source: ImageSource, indices: Iterable[int]) -> dict[str, str]:
    def digest(index: int) -> str | None:
        try:
            data = source.encoded(index) if isinstance(source, EncodedSource) else None
            if data is None and source.manifest.exif == "apply":  # it is turned, and goes to no decoder as it stands
                data = read_listed_file(source.manifest.path(index), int(source.manifest.sizes[index]))
        except (ImageReadError, OSError, ValueError):
            return None
        return None if data is None else hashlib.sha256(data).hexdigest()[:_HEX_DIGITS]

    indices = list(indices)
    with ThreadPoolExecutor(_READERS) as pool:  # they mostly wait for a disk or a network
        digests = pool.map(digest, indices)
        return {str(index): found for index, found in zip(indices, digests, strict=True) if found is not None}
