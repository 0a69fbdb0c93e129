"""Files copied once to a node's own disk: several threads, one process at a time, and a sentinel that is written last.

The folder of a copy holds a mark, which is the lock as well, from the beginning; the files in flight in a folder of their own,
until each is renamed into its place; and in the end the sentinel, which says what was copied. A copy that was cut short goes on
with the files that are missing. A folder without the mark is somebody else's.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.stored_json import parse_json

MARK = ".rlpheads-staging"
SENTINEL = ".rlpheads-staged.json"
_PARTS = ".rlpheads-parts"
_VERSION = 1
_COPIERS = 16
_FILES_AT_ONCE = 64
_CHUNK = 4 << 20
_FLUSHED = 16
"""Chunks after which a file is flushed: one flush of a whole store would show no progress for minutes."""
_TURN_S = 0.5
_PATIENCE_S = 300.0
"""Seconds without progress of another process that copies, after which waiting for it is no progress either."""
_LOOKED_AT = 1000

Told = Callable[[int | None], object]
"""Gets the number of bytes copied so far as it grows, and None while another process of the node copies."""


@dataclass(frozen=True)
class LocalCopy:
    """A copy that is to be.

    Attributes:
        source: Folder that the files lie in.
        folder: Folder of the copy.
        fingerprints: Of the manifests whose files these are.
        files: Names relative to both folders, in the file system's bytes, and sizes.
    """

    source: Path
    folder: Path
    fingerprints: Sequence[str]
    files: Sequence[tuple[bytes, int]]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    def facts(self) -> dict[str, Any]:
        """Return what the sentinel says."""
        counts = {"files": len(self.files), "bytes": self.num_bytes}
        return {"version": _VERSION, "fingerprints": list(self.fingerprints), **counts}


def make_local_copy(copy: LocalCopy, told: Told) -> int:
    """Copy what is not there yet; return how many bytes that was, 0 where the copy was whole.

    Where the sentinel is right, only the sizes of some copies are looked at, and the source is not. Nothing is deleted but
    files in flight.

    Raises:
        DatasetError: The folder is somebody else's, a file is not as it was listed, or the disk has no room or fails.
    """
    try:
        _check_folder(copy.folder)
        with _alone(copy.folder / MARK, told) as beat:
            whole = _is_whole(copy)
            every = max(1, len(copy.files) // _LOOKED_AT) if whole else 1
            if whole and not _missing(copy, every):
                return 0
            missing = _missing(copy)
            _check_room(copy, missing)
            (copy.folder / SENTINEL).unlink(missing_ok=True)

            def told_and_beaten(num_bytes: int) -> None:
                beat()
                told(num_bytes)

            _copy(copy, missing, told_and_beaten)
            _write_sentinel(copy)
            return sum(size for _, size in missing)
    except OSError as error:
        where = os.fsdecode(error.filename2 or error.filename or copy.folder)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = (
            "make room there, or name another folder; the same command goes on with the copy" if full else "look at it"
        )
        raise DatasetError(
            f"{copy.source} cannot be copied to {copy.folder}: {where}: {error.strerror}; {remedy}"
        ) from error


def _check_folder(folder: Path) -> None:
    """Make the folder of a copy, or refuse one that is not ours, in which nothing is touched."""
    if not folder.parent.is_dir():
        raise DatasetError(f"there is no folder {folder.parent} on this node to copy to: make it, or name another one")
    if not os.path.lexists(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise DatasetError(f"{folder} is no folder; remove it, or name another folder to copy to")
    if status.st_uid != os.getuid():
        raise DatasetError(
            f"{folder} belongs to user {status.st_uid}, and this process runs as user {os.getuid()}: name a folder of your own"
        )
    if any(folder.iterdir()) and not (folder / MARK).is_file():
        raise DatasetError(
            f"{folder} holds files, and no mark that rlpheads has copied them ({MARK}); it is left as it is: move it away, or "
            "name another folder to copy to"
        )


@contextmanager
def _alone(mark: Path, told: Told) -> Iterator[Callable[[], None]]:
    """Hold the lock of a copy; give what tells those who wait for it that there is progress."""
    descriptor = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        seen, since = -1, time.monotonic()
        while not _locked(descriptor):
            if (beat := os.fstat(descriptor).st_mtime_ns) != seen:
                seen, since = beat, time.monotonic()
            if time.monotonic() - since < _PATIENCE_S:
                told(None)
            time.sleep(_TURN_S)
        yield lambda: os.utime(descriptor)
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_whole(copy: LocalCopy) -> bool:
    """Whether a sentinel says that this very copy was finished."""
    try:
        return parse_json((copy.folder / SENTINEL).read_bytes()) == copy.facts()
    except (FileNotFoundError, ValueError):
        return False


def _missing(copy: LocalCopy, every: int = 1) -> list[tuple[bytes, int]]:
    """Return the files that have no copy of their size; of all files, or of one in `every`."""
    folder = os.fsencode(copy.folder)
    return [file for file in copy.files[::every] if not _has_size(folder + b"/" + file[0], file[1])]


def _has_size(path: bytes, size: int) -> bool:
    try:
        return os.lstat(path).st_size == size
    except (FileNotFoundError, NotADirectoryError):
        return False


def _check_room(copy: LocalCopy, missing: list[tuple[bytes, int]]) -> None:
    block = os.statvfs(copy.folder).f_frsize
    needed = sum(-(-size // block) * block for _, size in missing)
    free = shutil.disk_usage(copy.folder).free
    if needed > free:
        raise DatasetError(
            f"{copy.folder} has {free:,} bytes left, and {needed:,} are needed for {len(missing):,} files of {copy.source}: "
            "make room, or name another folder to copy to"
        )


class _Tally:
    """Bytes that all threads have copied, and whether they are to stop."""

    def __init__(self) -> None:
        self.num_bytes, self.stops = 0, False
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes += num_bytes


def _copy(copy: LocalCopy, missing: list[tuple[bytes, int]], told: Callable[[int], object]) -> None:
    parts = copy.folder / _PARTS
    parts.mkdir(exist_ok=True)
    parents = sorted({os.path.dirname(name) for name, _ in missing})  # noqa: PTH120 (names are bytes)
    for parent in parents:
        _check_name(parent)
        (copy.folder / os.fsdecode(parent)).mkdir(parents=True, exist_ok=True)
    tally = _Tally()
    size = max(1, min(_FILES_AT_ONCE, len(missing) // _COPIERS))
    batches = [missing[start : start + size] for start in range(0, len(missing), size)]
    with ThreadPoolExecutor(_COPIERS) as pool:
        waiting = {pool.submit(_copy_batch, copy, batch, parts / str(n), tally) for n, batch in enumerate(batches)}
        try:
            last = 0
            while waiting:
                done, waiting = wait(waiting, _TURN_S, FIRST_EXCEPTION)
                for batch_done in done:
                    batch_done.result()
                if tally.num_bytes != last:
                    last = tally.num_bytes
                    told(last)
        finally:
            tally.stops = True
            pool.shutdown(cancel_futures=True)
    shutil.rmtree(parts)
    for folder in (copy.folder, *(copy.folder / os.fsdecode(parent) for parent in parents)):
        _flush(folder)


def _check_name(name: bytes) -> None:
    """Refuse a name that leads out of the folder: a run's listing may be a stranger's."""
    if name.startswith(b"/") or b".." in name.split(b"/"):
        raise DatasetError(f"{os.fsdecode(name)!r} is no name of a file in a tree")


def _copy_batch(copy: LocalCopy, batch: list[tuple[bytes, int]], part: Path, tally: _Tally) -> None:
    for name, size in batch:
        if tally.stops:
            return
        _check_name(name)
        _copy_file(copy.source / os.fsdecode(name), size, part, tally)
        if not tally.stops:
            part.replace(copy.folder / os.fsdecode(name))


def _copy_file(path: Path, size: int, part: Path, tally: _Tally) -> None:
    """Copy one file that was listed with `size` bytes, and flush it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # does not wait for the other end of a pipe
    with open(descriptor, "rb", buffering=0) as source, part.open("wb") as target:  # noqa: PTH123
        before, descriptor_of_copy = os.fstat(descriptor), target.fileno()
        found = before.st_size if stat.S_ISREG(before.st_mode) else -1
        copied = chunks = 0
        while found == size and copied <= size and not tally.stops and (chunk := source.read(_CHUNK)):
            target.write(chunk)
            copied, chunks = copied + len(chunk), chunks + 1
            tally.add(len(chunk))
            if chunks % _FLUSHED == 0:
                os.fdatasync(descriptor_of_copy)
        target.flush()
        os.fdatasync(descriptor_of_copy)
        after = os.fstat(descriptor)
    if tally.stops:
        return
    if (copied, after.st_size, after.st_mtime_ns) != (size, size, before.st_mtime_ns):
        now = "is no regular file now" if found < 0 else f"has {after.st_size:,} bytes now, or was written to meanwhile"
        raise DatasetError(
            f"{path} has changed: it had {size:,} bytes when it was listed, and {now}; start again when nothing changes there"
        )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_sentinel(copy: LocalCopy) -> None:
    """Write what was copied, in one step, when all of it is on the disk."""
    temporary = copy.folder / f"{SENTINEL}.tmp"
    temporary.write_text(json.dumps(copy.facts(), indent=1) + "\n")
    _flush(temporary)
    temporary.replace(copy.folder / SENTINEL)
    _flush(copy.folder)
