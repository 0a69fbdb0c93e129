"""The manifest: the list of a split's samples with names, targets, sizes, and one fingerprint of them all.

Names lie in one byte array rather than in Python strings: a list of a million strings is copied page by page into every
loader worker as its reference counts are touched, and takes ten times the memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlpheads.loaders.contract.arrays import Int64Array

FolderTimes = Mapping[bytes, tuple[int, int, int]]
"""Of folders, by their paths below a root: when entries and status last changed, in nanoseconds, and the inode."""
ExifPolicy = Literal["ignore", "apply"]
"""An image is taken as its file has the pixels, or turned as its EXIF orientation says."""


@dataclass(frozen=True, eq=False)
class Manifest:
    """The samples of one split in canonical order: by class, then by name, in byte order whatever the locale.

    Two manifests are equal when their fingerprints are.

    Attributes:
        name_bytes: uint8, all names one after another; a name is a relative POSIX path in the file system's own bytes.
        name_offsets: int64 (N + 1,), where each name begins, and the end.
        targets: int64 (N,), position of the sample's class in `classes`.
        sizes: int64 (N,), bytes of each file.
        classes: Names of the classes, sorted.
        root: Folder that the names are relative to; None where there are no files.
        split: Name of the split, such as "train".
        unreadable: Why samples are known to be unreadable, by canonical index; no loader decodes them
            (`rlpheads.loaders.sources.verification`). Not part of the fingerprint.
        remarks: Lines on what the scan passed over, for people. Not part of the fingerprint.
        exif: What is done about the files' EXIF orientation.
        folder_times: Of every folder that was scanned its times then, by which a later start finds that nothing was added or
            removed; empty where they cannot tell. Not part of the fingerprint.
    """

    name_bytes: NDArray[np.uint8]
    name_offsets: Int64Array
    targets: Int64Array
    sizes: Int64Array
    classes: tuple[str, ...]
    root: Path | None
    split: str
    unreadable: Mapping[int, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    exif: ExifPolicy = "ignore"
    folder_times: FolderTimes = field(default_factory=dict)

    @classmethod
    def from_columns(
        cls,
        names: Sequence[bytes],
        targets: Sequence[int] | Int64Array,
        sizes: Sequence[int] | Int64Array,
        *,
        classes: tuple[str, ...],
        root: Path | None,
        split: str,
        remarks: tuple[str, ...] = (),
        folder_times: FolderTimes | None = None,
    ) -> Manifest:
        """Pack columns that already stand in canonical order."""
        offsets = np.zeros(len(names) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, names), dtype=np.int64, count=len(names)), out=offsets[1:])
        return cls(
            name_bytes=np.frombuffer(b"".join(names), dtype=np.uint8),
            name_offsets=offsets,
            targets=np.asarray(targets, dtype=np.int64),
            sizes=np.asarray(sizes, dtype=np.int64),
            classes=classes,
            root=root,
            split=split,
            remarks=remarks,
            folder_times=folder_times or {},
        )

    def check(self) -> None:
        """Compare the columns, which a file may have given, with what they must be.

        Raises:
            ValueError: If one has another type or length, or says what cannot be.
        """
        dtypes = {"name_bytes": np.uint8, "name_offsets": np.int64, "targets": np.int64, "sizes": np.int64}
        for name, dtype in dtypes.items():
            column = getattr(self, name)
            if column.ndim != 1 or column.dtype != dtype:
                raise ValueError(f"{name} is {column.dtype} {column.shape}")
        starts = self.name_offsets
        if not len(self.targets) == len(self.sizes) == len(starts) - 1:
            raise ValueError("its columns differ in length")
        if starts[0] != 0 or starts[-1] != len(self.name_bytes) or (np.diff(starts) < 0).any():
            raise ValueError("its names do not follow one another")
        if len(self.targets) and not 0 <= self.targets.min() <= self.targets.max() < len(self.classes):
            raise ValueError(f"its targets are not all in 0..{len(self.classes) - 1}")
        if any(index >= self.num_samples for index in self.unreadable):
            raise ValueError("it calls samples unreadable that it does not have")

    @property
    def num_samples(self) -> int:
        """Number of samples, N."""
        return len(self.targets)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over split, names, sizes and class names, and whether the EXIF orientation is applied.

        It does not depend on where the root lies nor on the file system's order, and it does not read the files.
        """
        digest = hashlib.sha256()
        columns = (self.name_offsets, self.name_bytes, self.sizes, self.targets)
        parts = [self.split.encode(), *(os.fsencode(name) for name in self.classes)]
        parts += [np.ascontiguousarray(column, dtype=column.dtype.newbyteorder("<")).tobytes() for column in columns]
        parts += [b"exif apply"] if self.exif == "apply" else []
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.hexdigest()

    def name(self, index: int) -> str:
        """Return a sample's relative POSIX path.

        Raises:
            IndexError: If the index is not in 0..N-1; -1 marks padding, and has no name.
        """
        if not 0 <= index < self.num_samples:
            raise IndexError(f"index {index} is not in 0..{self.num_samples - 1} of split {self.split!r}")
        start, end = self.name_offsets[index : index + 2]
        return os.fsdecode(self.name_bytes[start:end].tobytes())

    def path(self, index: int) -> Path:
        """Return where a sample's file lies.

        Raises:
            ValueError: If the dataset has no files.
        """
        if self.root is None:
            raise ValueError(f"the samples of this dataset are not files: {self.name(index)} has no path")
        return self.root / self.name(index)

    def names(self) -> list[bytes]:
        """Return all names, as the file system's bytes, in canonical order."""
        joined = self.name_bytes.tobytes()
        return [joined[start:end] for start, end in pairwise(self.name_offsets.tolist())]

    def select(self, keep_N: NDArray[np.bool_], split: str) -> Manifest:
        """Return the kept samples, in the same order, as a split of its own with the same classes."""
        lengths_N = np.diff(self.name_offsets)
        place_N = np.cumsum(keep_N) - 1
        return Manifest(
            name_bytes=self.name_bytes[np.repeat(keep_N, lengths_N)],
            name_offsets=np.concatenate([[0], np.cumsum(lengths_N[keep_N])]).astype(np.int64),
            targets=self.targets[keep_N],
            sizes=self.sizes[keep_N],
            classes=self.classes,
            root=self.root,
            split=split,
            unreadable={int(place_N[index]): why for index, why in self.unreadable.items() if keep_N[index]},
            remarks=self.remarks,
            exif=self.exif,
            folder_times=self.folder_times,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)
