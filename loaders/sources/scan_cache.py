"""Large trees listed without a scan: by what an earlier start kept in the user's cache, or by what a run that goes on has.

Each kept listing is two files: `rlpheads.loaders.contract.listing`, and what tells whether it is still true
(`rlpheads.loaders.sources.kept_listing`), so that no later start asks for a million sizes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rlpheads.loaders.contract.listing import listing_path, write_listing
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.sources.kept_listing import facts_path, find_listing, listing_facts


@dataclass(frozen=True)
class ScanCache:
    """Where listings are looked for before a tree is scanned, and where they are kept.

    Attributes:
        folder: Which no other user may write; it is made where it is missing. None: nothing is kept.
        run_listing: Folder of the listings of a run that goes on, if any.
        rescan: Whether trees are scanned in any case, as `data.rescan`; their listings are kept all the same.
        least_files: Trees of fewer files are scanned each time, which takes a tenth of a second.
        settled_ns: Nanoseconds for which no folder must have changed when its scan begins: a later change could bear the
            same time.
    """

    folder: Path | None
    run_listing: Path | None = None
    rescan: bool = False
    least_files: int = 10_000
    settled_ns: int = 2_000_000_000

    def listed(self, root: Path, split: str, scan: Callable[[Path, str], Manifest]) -> Manifest:
        """Return the listing of a folder that is kept, or scan it and keep what was found.

        Of several processes of a machine that want the same folder one scans, and the others wait for it.

        Args:
            root: Folder of the split's classes.
            split: Name of the split.
            scan: Scans a folder; the arguments are root and split.

        Returns:
            The listing, with folder times where a later start may go by them.

        Raises:
            DatasetError: As `scan`.
        """
        if (found := self._find(root, split)) is not None:
            return found
        with self._alone(root, split):
            if (found := self._find(root, split)) is not None:  # another process has scanned it
                return found
            began = time.time_ns()
            manifest = scan(root, split)
            changes = (max(modified, changed) for modified, changed, _ in manifest.folder_times.values())
            if manifest.num_samples < self.least_files or any(last >= began - self.settled_ns for last in changes):
                return replace(manifest, folder_times={})
            if self.folder is not None:
                with suppress(OSError):  # a cache that is full or read-only costs the next start its scan, no more
                    _keep(manifest, self._path(self.folder, root, split))
            return manifest

    def _find(self, root: Path, split: str) -> Manifest | None:
        """Return a kept listing that is still true; of the cache and the run the first that has one."""
        if self.rescan:
            return None
        places = [] if self.folder is None else [self._path(self.folder, root, split)]
        places += [] if self.run_listing is None else [listing_path(self.run_listing, split)]
        found = (find_listing(place, root, split) for place in places)
        return next((manifest for manifest in found if manifest is not None), None)

    @staticmethod
    def _path(folder: Path, root: Path, split: str) -> Path:
        key = hashlib.sha256(b"\0".join([os.fsencode(root.absolute()), split.encode()])).hexdigest()[:32]
        return listing_path(folder, key)

    @contextmanager
    def _alone(self, root: Path, split: str) -> Iterator[None]:
        """Keep other processes from scanning this folder meanwhile, where the file system knows locks.

        Each folder has a lock of its own: a tree of ten files does not wait for the scan of a million on a slow disk.
        """
        path = lock = None
        if self.folder is not None:
            path = self._path(self.folder, root, split).with_suffix(".lock")
            with suppress(OSError):
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = path.open("w")
        if path is None or lock is None:
            yield
            return
        with lock:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                with suppress(OSError):  # those who wait still get it; who comes now scans once more at most
                    path.unlink()


def _keep(manifest: Manifest, path: Path) -> None:
    with _written_whole(path) as temporary:
        write_listing(temporary, manifest)
    with _written_whole(facts_path(path)) as temporary:
        temporary.write_text(listing_facts(manifest))


@contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """Give a file to write that takes the place of `path`, if the body ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
