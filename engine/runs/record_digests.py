"""Digests of a run's record: metrics.jsonl and the ledgers of finished epochs, kept in every checkpoint's manifest.

A checkpoint could go on without them, and nobody would notice that they were cut or lost: so they are compared on resume.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class FileDigest:
    """The first bytes of a file: how many, and their SHA-256 in hex."""

    bytes: int
    sha256: str


class RecordDigests:
    """The record's digests as it grows; each byte is read once.

    Args:
        folder: the run folder.
        known: digests that a checkpoint holds, by the file's path in the folder; those files are as they say.
    """

    def __init__(self, folder: Path, known: Mapping[str, FileDigest] | None = None):
        self._folder = folder
        self._ledgers = {name: digest for name, digest in (known or {}).items() if name != METRICS}
        self._hash = hashlib.sha256()
        self._num_bytes = 0

    def add_ledger(self, path: Path) -> None:
        """Hash a ledger that was just written."""
        self._ledgers[path.relative_to(self._folder).as_posix()] = digest_of(path)

    def current(self) -> dict[str, dict[str, Any]]:
        """Return the digests for a manifest. What metrics.jsonl holds is on the disk when this returns."""
        self._read_metrics()
        digests = {METRICS: FileDigest(self._num_bytes, self._hash.hexdigest()), **self._ledgers}
        return {name: asdict(digest) for name, digest in digests.items()}

    def _read_metrics(self) -> None:
        path = self._folder / METRICS
        if not path.exists():  # no line was written yet
            return
        with path.open("rb") as file:
            os.fsync(file.fileno())
            file.seek(self._num_bytes)
            while block := file.read(_BLOCK):
                self._hash.update(block)
                self._num_bytes += len(block)


def digest_of(path: Path, num_bytes: int | None = None) -> FileDigest:
    """Hash a file, or as much as there is of its first `num_bytes`."""
    digest, count = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK if num_bytes is None else min(_BLOCK, num_bytes - count)):
            digest.update(block)
            count += len(block)
    return FileDigest(count, digest.hexdigest())


def record_problems(folder: Path, digests: Mapping[str, FileDigest]) -> Iterator[tuple[str, str]]:
    """Yield the name of each file that is not what a checkpoint knew, and what is wrong with it.

    Of metrics.jsonl the beginning is compared: what follows was written later, and is written again.
    """
    for name, known in digests.items():
        path = folder / name
        if not path.is_file():
            if known.bytes:
                yield name, f"{name} is missing"
            continue
        size = path.stat().st_size
        if size < known.bytes or (size > known.bytes and name != METRICS):
            yield name, f"{name} has {size} bytes and had {known.bytes}"
        elif digest_of(path, known.bytes) != known:
            yield name, f"{name} was changed"
