"""The files of a tree as a run found them, kept with the run: what is gone later is marked, and every other keeps its index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.manifest import Manifest

_COLUMNS = ("name_bytes", "name_offsets", "targets", "sizes")


def listing_path(folder: Path, split: str) -> Path:
    """Return where the listing of a scanned split lies."""
    return folder / f"{split}.npz"


def write_listing(path: Path, manifest: Manifest) -> None:
    """Write a manifest to a file: its samples and classes, and its fingerprint."""
    columns = {name: getattr(manifest, name) for name in _COLUMNS}
    classes = np.array([os.fsencode(name) for name in manifest.classes])
    facts = np.array([manifest.split.encode(), manifest.fingerprint.encode()])
    with path.open("wb") as file:
        np.savez_compressed(file, **columns, classes=classes, facts=facts)


def read_listing(path: Path, root: Path | None) -> Manifest:
    """Read a manifest back, of files below `root`.

    Raises:
        DatasetError: the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            columns = {name: stored[name] for name in _COLUMNS}
            classes = tuple(os.fsdecode(name) for name in stored["classes"].tolist())
            split, fingerprint = (fact.decode() for fact in stored["facts"].tolist())
        manifest = Manifest(**columns, classes=classes, root=root, split=split)
        manifest.check()
        if manifest.fingerprint != fingerprint:
            raise ValueError("it does not have the fingerprint that is recorded in it")
    except Exception as error:  # a damaged archive ends in nearly any of them
        raise DatasetError(f"{path}, the list of the run's images, is damaged ({error})") from error
    return manifest


def as_listed(scanned: Manifest, folder: Path | None) -> Manifest:
    """Return the samples that a run began with, those marked as unreadable that are gone or have another size since.

    Files that were added since are no samples of the run.

    Args:
        scanned: what the tree holds now.
        folder: of the listings; None, or without one of this split: the scan is returned.

    Raises:
        DatasetError: the listing is damaged.
    """
    path = None if folder is None else listing_path(folder, scanned.split)
    if path is None or not path.exists():
        return scanned
    listed = read_listing(path, scanned.root)
    if listed == scanned:
        return scanned
    sizes = dict(zip(scanned.names(), scanned.sizes.tolist(), strict=True))
    unreadable = {}
    for index, (name, size) in enumerate(zip(listed.names(), listed.sizes.tolist(), strict=True)):
        if name not in sizes:
            unreadable[index] = "it is gone since the run began"
        elif sizes[name] != size:
            unreadable[index] = f"it has {sizes[name]} bytes and had {size} when the run began"
    num_added = len(sizes.keys() - set(listed.names()))
    remark = (
        f"{scanned.root}: {len(unreadable)} of {listed.num_samples} images are gone or changed since the run began and are "
        f"left out; {num_added} that were added are no part of it"
    )
    return replace(listed, unreadable=unreadable, remarks=(*scanned.remarks, remark))


def scanned_splits(train: Manifest, heldout: Manifest) -> Sequence[Manifest]:
    """Return what a tree's scan found, from the splits that it became: one listing where both were taken from one folder.

    What is done about orientation, and which files are known to be unreadable, is no part of it.
    """
    train, heldout = (replace(split, exif="ignore", unreadable={}) for split in (train, heldout))
    if train.root != heldout.root:
        return train, heldout
    names = [*train.names(), *heldout.names()]
    targets = np.concatenate([train.targets, heldout.targets])
    sizes = np.concatenate([train.sizes, heldout.sizes])
    places = sorted(range(len(names)), key=lambda place: (targets[place], names[place]))
    whole = Manifest.from_columns(
        [names[place] for place in places],
        targets[places],
        sizes[places],
        classes=train.classes,
        root=train.root,
        split="train",
        remarks=train.remarks,
        folder_times=train.folder_times,
    )
    return (whole,)
