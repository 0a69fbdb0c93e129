"""The results of `rlpheads verify`: which files of a tree no loader may decode.

Decoders disagree about damaged files: one makes up the missing part, another refuses, a third keeps what its buffer held.
So each file is decoded once, strictly, and damaged files count as unreadable for all loaders alike.

FOLDER/SPLIT.json holds the manifest's fingerprint, how many files were looked at (in canonical order, from the first),
and the status of those that are not fine: all others are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from rlpheads.loaders.contract.errors import DatasetError, ImageReadError
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.contract.options import OnError
from rlpheads.loaders.contract.stored_json import check_types, parse_json

FOLDER_NAME = ".rlpheads"
"""Folder in a tree's root where the files lie by default; hidden, so that it is no class."""

_VERSION = 1
_NAMED_AT_MOST = 5
_TYPES = {"version": int, "fingerprint": str, "num_samples": int, "num_checked": int, "complaints": dict}
_TYPES_OF_COMPLAINT = {"status": str, "name": str, "reason": str}


@dataclass(frozen=True)
class BadFile:
    """A file that is damaged or unreadable.

    Attributes:
        status: "unreadable": no picture comes out of it. "damaged": one does, but the decoder made up part of it.
        name: The sample's name.
        reason: What the decoder says.
    """

    status: Literal["unreadable", "damaged"]
    name: str
    reason: str


@dataclass(frozen=True)
class Verification:
    """The results of verifying a split's files.

    Attributes:
        fingerprint: Of the manifest as it was scanned.
        num_samples: Samples of the split.
        num_checked: How many were looked at, from the first.
        complaints: By canonical index; all others that were looked at are fine.
    """

    fingerprint: str
    num_samples: int
    num_checked: int = 0
    complaints: dict[int, BadFile] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether every file was looked at."""
        return self.num_checked == self.num_samples

    def to_json(self) -> str:
        """Return the content of the file."""
        return json.dumps({"version": _VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Verification:
        """Read a file.

        Raises:
            DatasetError: If it is not such a file.
        """
        try:
            content = parse_json(path.read_bytes())
            if type(content) is dict and content.get("version", _VERSION) != _VERSION:
                raise DatasetError(f"{path} was written by another version of rlpheads: run rlpheads verify again")
            found = check_types(content, _TYPES)
            del found["version"]
            return cls(**found | {"complaints": _complaints(found["complaints"], found["num_samples"])})
        except DatasetError:
            raise
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path} cannot be read ({error}): delete it and run rlpheads verify again") from error


def _complaints(found: dict[str, Any], num_samples: int) -> dict[int, BadFile]:
    """Return complaints by index, checked.

    Raises:
        ValueError: If they are of another form, or of samples that the split does not have.
    """
    complaints = {}
    for index, content in found.items():
        if not (index.isascii() and index.isdigit()) or int(index) >= num_samples:
            raise ValueError(f"{index[:20]!r} is no index of {num_samples} samples")
        bad = BadFile(**check_types(content, _TYPES_OF_COMPLAINT))
        if bad.status not in ("unreadable", "damaged"):
            raise ValueError(f"status {bad.status[:20]!r} is unknown")
        complaints[int(index)] = bad
    return complaints


def verification_path(folder: Path, split: str) -> Path:
    """Return where the results for a scanned split lie."""
    return folder / f"{split}.json"


def with_verification(manifest: Manifest, root: Path, folder: Path | None) -> Manifest:
    """Return a scanned manifest with its unreadable samples, where `rlpheads verify` wrote them down.

    Args:
        manifest: As it was scanned, before it is split.
        root: Root of the tree, which has a folder of findings or not.
        folder: Where the findings are if not there; then they must be.

    Raises:
        DatasetError: If they are missing where they must be, damaged, unfinished, or of other files.
    """
    path = verification_path(folder or root / FOLDER_NAME, manifest.split)
    if not path.exists():
        if folder is None:
            return manifest
        raise DatasetError(
            f"{path} does not exist: rlpheads verify --data.root {quote(str(root))} --out {quote(str(folder))} writes it"
        )
    found = Verification.read(path)
    remedy = f"run rlpheads verify --data.root {quote(str(root))}" + (f" --out {quote(str(folder))}" if folder else "")
    if found.fingerprint != manifest.fingerprint:
        raise DatasetError(
            f"{path} is of other files than those of split {manifest.split!r}: its fingerprint is {found.fingerprint}, "
            f"theirs is {manifest.fingerprint}; {remedy}, or delete it"
        )
    if not found.is_whole:
        raise DatasetError(f"{path} tells of {found.num_checked} of {found.num_samples} files only; {remedy}")
    unreadable = {index: f"{bad.reason} (rlpheads verify)" for index, bad in found.complaints.items()}
    return replace(manifest, unreadable={**manifest.unreadable, **unreadable})


def check_readable(manifest: Manifest, on_error: OnError) -> None:
    """Refuse to begin with images that are known to be unreadable, unless they are to be skipped and others are left.

    Raises:
        DatasetError: If so; the first few are named.
    """
    if len(manifest.unreadable) == manifest.num_samples:
        raise nothing_readable(manifest)
    if on_error == "skip" or not manifest.unreadable:
        return
    first = sorted(manifest.unreadable.items())[:_NAMED_AT_MOST]
    named = "; ".join(str(ImageReadError(index, manifest.name(index), reason)) for index, reason in first)
    more = len(manifest.unreadable) - len(first)
    raise DatasetError(
        f"{len(manifest.unreadable)} of {manifest.num_samples} images of split {manifest.split!r} are known to be "
        f"unreadable: {named}{f'; and {more} more' if more else ''}. Leave them out with data.on_error skip, or repair or "
        f"remove them and run rlpheads verify again"
    )


def nothing_readable(manifest: Manifest) -> DatasetError:
    """Say that not one image of a split can be read."""
    where = "" if manifest.root is None else f" in {manifest.root}"
    return DatasetError(
        f"none of the {manifest.num_samples} images of split {manifest.split!r}{where} can be read, so that nothing can be "
        "said of it; `rlpheads verify --data.root FOLDER` names each with its reason: repair or replace them"
    )
