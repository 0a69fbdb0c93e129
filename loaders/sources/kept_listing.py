"""Listings that are kept with what tells whether they are still true: the times of folders and the hashes of some files.

A file that is added, removed or renamed changes its folder's times. One that is written over in place does not: a sample of
files is hashed, and a loader refuses a file of another size.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.listing import read_listing
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.sources.content_sample import sample_contents
from rlpheads.loaders.sources.image_folder import ImageFolderSource, folder_is_as_it_was

_VERSION = 2


def facts_path(listing: Path) -> Path:
    """Return where what is known of a listing lies: a JSON file beside it."""
    return listing.with_suffix(".json")


def listing_facts(manifest: Manifest) -> str:
    """Return what is to be known of a scanned folder's listing, as JSON; some of its files are read for it."""
    facts = {
        "version": _VERSION,
        "fingerprint": manifest.fingerprint,
        "folders": {os.fsdecode(name): times for name, times in manifest.folder_times.items()},
        "contents": sample_contents(ImageFolderSource(manifest)),
        "remarks": manifest.remarks,
    }
    return json.dumps(facts)


def find_listing(listing: Path, root: Path, split: str) -> Manifest | None:
    """Return a kept listing that is still true of a folder, as far as folder times and some files tell."""
    try:
        facts: dict[str, Any] = json.loads(facts_path(listing).read_text())
        folder_times = {os.fsencode(name): tuple(times) for name, times in facts["folders"].items()}
        if facts["version"] != _VERSION or not folder_times or not folder_is_as_it_was(root, folder_times):
            return None
        remarks = tuple(facts["remarks"])
        manifest = replace(read_listing(listing, root), remarks=remarks, folder_times=folder_times)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DatasetError):
        return None  # missing or damaged: scanning says what there is to say
    same = (manifest.fingerprint, manifest.split) == (facts["fingerprint"], split)
    return manifest if same and sample_contents(ImageFolderSource(manifest)) == facts["contents"] else None
