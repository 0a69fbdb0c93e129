"""Listings of large trees kept between starts: found by root and folder times, so that no later start asks for a million sizes.

Of each split lie in the cache a listing (`rlpheads.loaders.contract.listing`) and a JSON file with the times of every folder
and the hashes of some files. A file that is added, removed or renamed changes its folder's times. One that is written over in
place does not: a sample of files is hashed at each start, and a loader refuses a file of another size.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.listing import read_listing, write_listing
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.sources.content_sample import sample_contents
from rlpheads.loaders.sources.image_folder import FolderTimes, ImageFolderSource, folder_times

_VERSION = 1


@dataclass(frozen=True)
class ScanCache:
    """A folder of listings, which no other user may write.

    Attributes:
        folder: It is made where it is missing.
        rescan: Whether trees are scanned in any case, as `data.rescan`; their listings are kept all the same.
        least_files: Trees of fewer files are scanned each time, which takes a tenth of a second.
        settled_ns: Nanoseconds for which no folder must have changed when its scan begins: a later change could bear the
            same time.
    """

    folder: Path
    rescan: bool = False
    least_files: int = 10_000
    settled_ns: int = 2_000_000_000

    def listed(self, root: Path, split: str, scan: Callable[[Path, str], tuple[Manifest, FolderTimes]]) -> Manifest:
        """Return the listing of a folder from the cache, or scan it and keep what was found.

        Of several processes of a machine one scans, and the others wait for it.

        Args:
            root: Folder of the split's classes.
            split: Name of the split.
            scan: Scans a folder; the arguments are root and split.

        Raises:
            DatasetError: As `scan`.
        """
        if (found := self._find(root, split)) is not None:
            return found
        with self._alone():
            if (found := self._find(root, split)) is not None:  # another process has scanned it
                return found
            began = time.time_ns()
            manifest, times = scan(root, split)
            settled = all(max(modified, changed) < began - self.settled_ns for modified, changed, _ in times.values())
            if settled and manifest.num_samples >= self.least_files:
                with suppress(OSError):  # a cache that is full or read-only costs the next start its scan, no more
                    self._keep(manifest, times)
            return manifest

    def _find(self, root: Path, split: str) -> Manifest | None:
        """Return a kept listing that is still true, as far as folder times and some files tell."""
        facts_path, listing = self._paths(root, split)
        if self.rescan or not facts_path.exists():
            return None
        try:
            facts: dict[str, Any] = json.loads(facts_path.read_text())
            if facts["version"] != _VERSION or facts["root"] != str(root.absolute()):
                return None
            if any(folder_times(os.fsencode(name)) != tuple(times) for name, times in facts["folders"].items()):
                return None
            manifest = replace(read_listing(listing, root), remarks=tuple(facts["remarks"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, DatasetError):
            return None  # damaged, or a folder is gone: scanning says what there is to say
        same = (manifest.fingerprint, manifest.split) == (facts["fingerprint"], split)
        return manifest if same and sample_contents(ImageFolderSource(manifest)) == facts["contents"] else None

    def _keep(self, manifest: Manifest, times: FolderTimes) -> None:
        assert manifest.root is not None  # it was scanned
        facts_path, listing = self._paths(manifest.root, manifest.split)
        facts = {
            "version": _VERSION,
            "root": str(manifest.root.absolute()),
            "fingerprint": manifest.fingerprint,
            "folders": {os.fsdecode(name): times for name, times in times.items()},
            "contents": sample_contents(ImageFolderSource(manifest)),
            "remarks": manifest.remarks,
        }
        with _written_whole(listing) as temporary:
            write_listing(temporary, manifest)
        with _written_whole(facts_path) as temporary:
            temporary.write_text(json.dumps(facts))

    def _paths(self, root: Path, split: str) -> tuple[Path, Path]:
        """Return where what is known of a listing lies, and the listing itself."""
        key = hashlib.sha256(b"\0".join([os.fsencode(root.absolute()), split.encode()])).hexdigest()[:32]
        return self.folder / f"{key}.json", self.folder / f"{key}.npz"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from scanning meanwhile, where the file system knows locks."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("w")
        except OSError:
            yield
            return
        with lock:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """Give a file to write that takes the place of `path`, if the body ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
