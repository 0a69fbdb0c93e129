"""The images of a run on the node's own disk: which files are copied, under which name, and the sources that read the copies.

Manifests stay as they are but for their roots: indices, fingerprints, what is known to be unreadable, subsets and canaries are
the same. The folder of a copy is named after the data set and a hash of what is copied, so that images that have changed
since get another one, and a copy that some run reads is never changed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.listing import scanned_splits
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.sources.beton import BetonSource, manifest_path, open_beton
from rlpheads.loaders.sources.canary_source import CanarySource
from rlpheads.loaders.sources.content_sample import sample_contents
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.loaders.sources.image_folder import ImageFolderSource
from rlpheads.loaders.sources.subset import SubsetSource

Splits = tuple[ImageSource, ImageSource]
"""The training and the held-out split."""

_HEX_DIGITS = 16
_MOST_CHARACTERS = 50


def copied_manifests(splits: Splits) -> Sequence[Manifest]:
    """Return the manifests of what is copied: of a tree without canaries, exif policy and the cut into two splits."""
    train, heldout = (_listed(split).manifest for split in splits)
    if train.root is None:
        return [_bottom(split).manifest for split in splits]
    return scanned_splits(train, heldout)


def copy_name(splits: Splits, root: Path, manifests: Sequence[Manifest]) -> str:
    """Return the name of the folder of the copies.

    Files may be replaced by others of the same size: the times of a store's files tell, and the hashes of some of a tree's.

    Raises:
        OSError: A store's file is gone.
    """
    parts = [manifest.fingerprint for manifest in manifests]
    parts += [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in _store_files(splits)]
    parts += [str(sample_contents(ImageFolderSource(manifest))) for manifest in manifests]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:_HEX_DIGITS]
    return f"{root.absolute().name[:_MOST_CHARACTERS]}-{key}"


def files_to_copy(splits: Splits, root: Path) -> list[tuple[bytes, int]]:
    """Return the files that the splits read: names relative to `root`, and sizes.

    Of a tree these are the files of its listing, of a subset those that are in it, but none that is known to be unreadable.

    Raises:
        OSError: A store's file is gone.
    """
    if stored := _store_files(splits):
        return [(os.fsencode(path.name), path.stat().st_size) for path in stored]
    return [file for split in splits for file in _tree_files(_listed(split).manifest, root)]


def staged(source: ImageSource, root: Path, folder: Path) -> ImageSource:
    """Return a source that reads copies in `folder` of the files in `root`.

    Raises:
        DatasetError: The copy of a store is damaged.
    """
    if isinstance(source, BetonSource):
        copied = open_beton(folder / source.path.name)
        if copied.facts != source.facts:
            raise DatasetError(f"{copied.path} is not a copy of {source.path}: remove {folder}")
        return copied
    place = source.manifest.root
    manifest = source.manifest
    if place is not None:
        # Those that cannot be read are not copied: who looks for one at the path in its error would find nothing.
        unreadable = {index: f"{why} (not copied from {place})" for index, why in manifest.unreadable.items()}
        manifest = replace(manifest, root=folder / place.relative_to(root), unreadable=unreadable)
    if isinstance(source, (SubsetSource, CanarySource)):
        return replace(source, manifest=manifest, source=staged(source.source, root, folder))
    assert isinstance(source, ImageFolderSource)
    return replace(source, manifest=manifest)


def _listed(source: ImageSource) -> ImageSource:
    """Return a split without canaries, which are no files."""
    return source.source if isinstance(source, CanarySource) else source


def _bottom(source: ImageSource) -> ImageSource:
    return _bottom(source.source) if isinstance(source, (SubsetSource, CanarySource)) else source


def _store_files(splits: Splits) -> list[Path]:
    """Return the files of a store, none of a tree."""
    stores = [store for store in map(_bottom, splits) if isinstance(store, BetonSource)]
    return [path for store in stores for path in (store.path, manifest_path(store.path))]


def _tree_files(manifest: Manifest, root: Path) -> list[tuple[bytes, int]]:
    assert manifest.root is not None  # a tree's
    below = manifest.root.relative_to(root)
    prefix = b"" if below == Path() else os.fsencode(below) + b"/"
    files = zip(manifest.names(), manifest.sizes.tolist(), strict=True)
    return [(prefix + name, size) for index, (name, size) in enumerate(files) if index not in manifest.unreadable]
