"""Images in one folder for each class: the tree is scanned once, and read by canonical index."""

from __future__ import annotations

import difflib
import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from rlpheads.loaders.contract.errors import DatasetError, ImageReadError
from rlpheads.loaders.contract.listing import as_listed
from rlpheads.loaders.contract.manifest import FolderTimes, Manifest
from rlpheads.loaders.contract.regular_files import read_listed_file
from rlpheads.loaders.decoding.decode import decode_rgb
from rlpheads.loaders.decoding.orientation import UPRIGHT, exif_orientation, turn_upright
from rlpheads.loaders.sources.passed_over import THUMBNAIL_FOLDERS, PassedOver
from rlpheads.loaders.sources.splits import check_val_fraction, stratified_split
from rlpheads.loaders.sources.verification import with_verification

if TYPE_CHECKING:  # it scans by this module
    from rlpheads.loaders.sources.scan_cache import ScanCache

IMAGE_SUFFIXES = (
    *(".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".j2k", ".jp2", ".jpx"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".png", ".tif", ".tiff", ".webp"),
)
"""Suffixes of the formats that `decode_rgb` reads. Files with another suffix are not samples."""

_SPLIT_NAMES = ("train", "val", "valid", "validation", "eval", "test", "holdout", "heldout")
_SHOWN = 5


@dataclass(frozen=True)
class ImageFolderSource:
    """The images of a scanned folder.

    Attributes:
        manifest: What `scan_image_folder` found.
    """

    manifest: Manifest

    def read(self, index: int) -> Tensor:
        """Read one image: uint8 (3, H, W), red, green, blue.

        Raises:
            ImageReadError: If the file is gone, changed its size since the scan, or is not a whole image.
        """
        data = self._file(index)
        pixels = self.decode(index, data)
        return turn_upright(pixels, exif_orientation(data)) if self.manifest.exif == "apply" else pixels

    def encoded(self, index: int) -> bytes | None:
        """Read the bytes of one image's file; None where its pixels are to be turned, which decoders differ in.

        Raises:
            ImageReadError: If the file is gone, changed its size since the scan, or is known to be unreadable.
        """
        data = self._file(index)
        return None if self.manifest.exif == "apply" and exif_orientation(data) != UPRIGHT else data

    def _file(self, index: int) -> bytes:
        path = self.manifest.path(index)
        if index in self.manifest.unreadable:
            raise ImageReadError(int(index), str(path), self.manifest.unreadable[index])
        try:
            return read_listed_file(path, int(self.manifest.sizes[index]))
        except OSError as error:
            raise ImageReadError(int(index), str(path), error.strerror or str(error)) from error
        except ValueError as error:
            raise ImageReadError(int(index), str(path), str(error)) from error

    def decode(self, index: int, data: bytes) -> Tensor:
        """Decode the bytes of one image's file, as they stand there: uint8 (3, H, W).

        Raises:
            ImageReadError: If they are not a whole image.
        """
        try:
            return decode_rgb(data)
        except ValueError as error:
            raise ImageReadError(int(index), str(self.manifest.path(index)), str(error)) from error


def open_image_folder(
    root: Path,
    *,
    val_fraction: float | None,
    seed: int,
    verified: Path | None = None,
    listing: Path | None = None,
    cache: ScanCache | None = None,
) -> tuple[Manifest, Manifest]:
    """Scan ROOT/{train,val}/CLASS/..., or ROOT/CLASS/... or ROOT/train/CLASS/... of which `val_fraction` is held out.

    Args:
        root: Folder of the images.
        val_fraction: Fraction of each class that is held out.
        seed: Key of that split.
        verified: Where `rlpheads verify` wrote what it found; None: in the root, if anywhere.
        listing: Folder of the listings that a run began with, whose samples are taken; None: what is there now.
        cache: Where listings of large trees are kept; None: the tree is scanned.

    Returns:
        The splits "train" and "val".

    Raises:
        DatasetError: For a tree of another form, or a `val_fraction` that is missing, superfluous or outside (0, 1).
    """
    if val_fraction is not None:
        check_val_fraction(val_fraction)
    folders = _folder_names(root)
    if {"train", "val"} <= folders:
        if val_fraction is not None:
            raise DatasetError(
                f"{root} has a val folder already: set val_fraction to null, or point root at {root / 'train'}"
            )
        found = (as_listed(manifest, listing) for manifest in scan_splits(root, cache))
        train, val = (with_verification(manifest, root, verified) for manifest in found)
        _check_same_classes(train, val)
        return train, val
    if "val" in folders:
        raise DatasetError(f"{root} has a val folder but no train folder beside it ({_list_names(folders)})")
    if "train" in folders:
        _check_train_is_a_split(root, folders)
    if val_fraction is None:
        raise DatasetError(_missing_val_message(root, folders))
    (whole,) = (as_listed(manifest, listing) for manifest in scan_splits(root, cache))
    return stratified_split(with_verification(whole, root, verified), val_fraction, seed)


def scan_splits(root: Path, cache: ScanCache | None = None) -> list[Manifest]:
    """Scan the folders that a tree consists of: train and val, or what both are taken from, as split "train".

    What `cache` knows of is not scanned.

    Raises:
        DatasetError: For a tree of another form.
    """
    folders = _folder_names(root)
    places = {"train": root / "train" if "train" in folders else root}
    if {"train", "val"} <= folders:
        places["val"] = root / "val"
    if cache is None:
        return [scan_image_folder(folder, split) for split, folder in places.items()]
    return [cache.listed(folder, split, scan_image_folder) for split, folder in places.items()]


def count_class_folders(root: Path) -> int:
    """Return the number of class folders of a tree's training images, without listing the images.

    Raises:
        DatasetError: If the root has no folders, or cannot be read.
    """
    folders = _folder_names(root)
    return len(_folder_names(root / "train") if "train" in folders else folders)


def scan_image_folder(root: Path, split: str) -> Manifest:
    """List the images below ROOT/CLASS/, sub-folders included.

    Hidden entries, files with other suffixes, and pipes, sockets and devices are passed over, and counted in the
    manifest's remarks. Links to folders and files are followed. Names are relative to the root.

    Raises:
        DatasetError: If the root is not a folder, has fewer than two class folders, or one without images; if something
            cannot be read; if a link is broken or leads back into itself.
    """
    times: dict[bytes, tuple[int, int, int]] = {}
    if root.is_dir():
        times[b""] = _times(root.stat())
    folders = _class_folders(root)
    names: list[bytes] = []
    sizes: list[int] = []
    counts = []
    passed_over = PassedOver()
    for folder in folders:
        found = sorted(_images_below(folder.path, folder.name, (), passed_over, times))
        counts.append(len(found))
        names.extend(name for name, _ in found)
        sizes.extend(size for _, size in found)
    classes = tuple(os.fsdecode(folder.name) for folder in folders)
    _check_classes(root, classes, counts)
    targets = np.repeat(np.arange(len(classes)), counts)
    passed_over.thumbnails = sum(not THUMBNAIL_FOLDERS.isdisjoint(name.split(b"/")) for name in names)
    remarks = passed_over.remarks(root)
    return Manifest.from_columns(
        names, targets, sizes, classes=classes, root=root, split=split, remarks=remarks, folder_times=times
    )


def folder_is_as_it_was(root: Path, times: FolderTimes) -> bool:
    """Whether no entry was added to, removed from or renamed in any of the folders below a root since these times."""
    try:
        return all(_times((root / os.fsdecode(name)).stat()) == then for name, then in times.items())
    except OSError:
        return False


def _times(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _images_below(
    folder: bytes,
    name: bytes,
    ancestors: tuple[tuple[int, int], ...],
    passed_over: PassedOver,
    times: dict[bytes, tuple[int, int, int]],
) -> Iterator[tuple[bytes, int]]:
    """Yield (relative name, bytes of the file) of every image below a folder, in the file system's order.

    What is passed over is counted in `passed_over`, and the times of every folder are written into `times`.
    """
    try:
        status = Path(os.fsdecode(folder)).stat()
        times[name] = _times(status)
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:
            raise DatasetError(f"{os.fsdecode(folder)} is a link to a folder that it lies in")
        with os.scandir(folder) as entries:
            for entry in entries:
                entry_name = name + b"/" + entry.name
                if entry.name.startswith(b"."):
                    passed_over.add_hidden(entry.is_dir(follow_symlinks=False))
                elif entry.is_dir():
                    yield from _images_below(entry.path, entry_name, (*ancestors, identity), passed_over, times)
                elif not os.fsdecode(entry.name).lower().endswith(IMAGE_SUFFIXES):
                    passed_over.add_suffix(os.fsdecode(entry.name))
                elif stat.S_ISREG((file_status := entry.stat()).st_mode):
                    yield entry_name, file_status.st_size
                else:
                    passed_over.add_irregular(entry_name)
    except OSError as error:
        raise DatasetError(f"{os.fsdecode(error.filename or folder)} cannot be read: {error.strerror}") from error


def _folder_names(root: Path) -> set[str]:
    return {os.fsdecode(entry.name) for entry in _class_folders(root)}


def _class_folders(root: Path) -> list[os.DirEntry[bytes]]:
    """Return the visible folders in the root, links to folders included, sorted by the bytes of their names."""
    try:
        if not root.exists():
            raise DatasetError(f"{root} does not exist{_nearest_sibling(root)}")
        if not root.is_dir():
            raise DatasetError(f"{root} is a file, not the folder of a dataset")
        with os.scandir(os.fsencode(root)) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(b".")]
        folders = [entry for entry in visible if entry.is_dir()]
    except OSError as error:
        raise DatasetError(f"{os.fsdecode(error.filename or root)} cannot be read: {error.strerror}") from error
    if not folders:
        images = sum(os.fsdecode(entry.name).lower().endswith(IMAGE_SUFFIXES) for entry in visible)
        found = f"{images} images directly in it; each class needs a folder of its own" if images else "it has none"
        raise DatasetError(f"{root} must hold one folder for each class: {found}")
    return sorted(folders, key=lambda entry: entry.name)


def _check_classes(root: Path, classes: tuple[str, ...], counts: list[int]) -> None:
    """Check that there are two classes or more, and that none is empty."""
    suffixes = " ".join(IMAGE_SUFFIXES)
    if not any(counts):
        raise DatasetError(
            f"{root} holds no images: its class folders ({_list_names(classes)}) have no file ending in {suffixes}"
        )
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise DatasetError(f"class folder(s) without images in {root}: {_list_names(empty)} (images end in {suffixes})")
    if len(classes) == 1:
        raise DatasetError(f"{root} has one class folder only, {classes[0]!r}: does the dataset begin further down?")


def _check_same_classes(train: Manifest, val: Manifest) -> None:
    alone = {"train": set(train.classes) - set(val.classes), "val": set(val.classes) - set(train.classes)}
    if not any(alone.values()):
        return
    composed = [{unicodedata.normalize("NFC", name) for name in names} for names in alone.values()]
    reason = ""
    if set.intersection(*composed):  # they look alike: shown so that they can be told apart
        alone = {split: {ascii(name)[1:-1] for name in names} for split, names in alone.items()}
        reason = (
            "; some differ only in how their letters are encoded, as Unicode's NFC or NFD: rename one of the folders"
        )
    differences = [f"only in {split}: {_list_names(names)}" for split, names in alone.items() if names]
    raise DatasetError(f"train and val differ in their classes; {'; '.join(differences)}{reason}")


def _check_train_is_a_split(root: Path, folders: set[str]) -> None:
    """Refuse to guess when a folder called train stands beside what look like classes."""
    others = folders - set(_SPLIT_NAMES)
    if others:
        raise DatasetError(
            f"{root} has a train folder beside others ({_list_names(others)}): point root at {root / 'train'} if it is the "
            f"training split, or rename it if train is a class"
        )


def _missing_val_message(root: Path, folders: set[str]) -> str:
    """Say what to do when nothing is held out."""
    if "train" not in folders:
        return (
            f"{root} has no train and val folders; to hold images out of its {len(folders)} class folders, set "
            f"val_fraction"
        )
    beside = sorted(folders & set(_SPLIT_NAMES) - {"train"})
    rename = f", or rename {beside[0]} to val" if beside else ""
    return f"{root} has a train folder but no val folder: set val_fraction to hold images out of train{rename}"


def _nearest_sibling(path: Path) -> str:
    """Return ' (…)' with a hint at the folder that may have been meant."""
    if not path.parent.is_dir():
        return f" (nor does {path.parent})"
    close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""


def _list_names(names: set[str] | list[str] | tuple[str, ...]) -> str:
    """List a few names, sorted."""
    shown = ", ".join(sorted(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
