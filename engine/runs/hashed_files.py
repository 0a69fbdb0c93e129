"""Files of a checkpoint: hashed on their way to the disk, and compared with what a manifest says of them.

Hashes are no defence against a person, who could write another manifest: so the cheapest that misses nothing by chance is
taken, and manifests name the algorithm. A gigabyte through the page cache would cost a core a third of a second and drop a
gigabyte of images from memory, so whole blocks go past it where the file system allows that.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from rlpheads.memorization.json_reading import DamagedJsonError, check_kinds

WRITTEN = "xxh3_128"
ALGORITHMS: Mapping[str, Callable[[], Any]] = {WRITTEN: xxhash.xxh3_128, "sha256": hashlib.sha256}
"""By the name under which a manifest has the hash, what makes it; SHA-256 is in those of formats 1 and 2."""
_MOST_SHOWN = 40
_BLOCK_BYTES = 1 << 22
"""A multiple of every device's block, and small enough that what was copied is hashed in the processor's cache."""
_DIRECT = getattr(os, "O_DIRECT", 0)


def check_facts(name: str, facts: Any) -> None:
    """Raise DamagedJsonError where a manifest does not say size and hash of a file in the checkpoint's own folder."""
    if Path(name).name != name or "\0" in name:
        raise DamagedJsonError(f"files has {name[:_MOST_SHOWN]!r}, which is no file of a checkpoint")
    check_kinds({name: facts}, {name: "mapping"})
    known = [algorithm for algorithm in ALGORITHMS if algorithm in facts]
    if not known:
        raise DamagedJsonError(f"{name} has no hash by {' or '.join(ALGORITHMS)}")
    check_kinds(facts, {"bytes": "count", **dict.fromkeys(known, "text")})


def file_problem(path: Path, facts: Mapping[str, Any]) -> str | None:
    """Say what a file has that its facts (see `check_facts`) do not tell of, or return None."""
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != facts["bytes"]:
        return f"{path.name} has {path.stat().st_size} bytes, not {facts['bytes']}"
    algorithms = {name: start for name, start in ALGORITHMS.items() if name in facts}
    for name, start in algorithms.items():
        with path.open("rb") as file:
            if hashlib.file_digest(file, start).hexdigest() != facts[name]:
                return f"{path.name} does not have the hash that was recorded when it was written"
    return None


class WrittenFile(io.IOBase):
    """A file that is written from its beginning to its end, in whole blocks out of memory of its own.

    Args:
        descriptor: the open file, which stays open. With O_DIRECT set, whole blocks go past the page cache.
    """

    def __init__(self, descriptor: int):
        self.digest = ALGORITHMS[WRITTEN]()
        self.num_bytes = 0
        self._descriptor = descriptor
        self._block = mmap.mmap(-1, _BLOCK_BYTES)  # begins at a page, as O_DIRECT asks
        self._bytes = np.frombuffer(self._block, np.uint8)
        self._filled = 0

    def write(self, data: Any) -> int:
        """Take any buffer; what fills no block is kept until more comes."""
        view = memoryview(data)
        source = np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)
        for begin, end in self._pieces(len(source)):
            np.copyto(self._bytes[self._filled : self._filled + end - begin], source[begin:end])
            self._filled += end - begin
            if self._filled == _BLOCK_BYTES:
                self._drain()
        self.num_bytes += len(source)
        return len(source)

    def finish(self) -> None:
        """Write what is left, and wait until all is on the disk."""
        if self._filled % mmap.PAGESIZE:
            self._use_page_cache()
        self._drain()
        os.fsync(self._descriptor)

    def tell(self) -> int:
        """Bytes so far."""
        return self.num_bytes

    def flush(self) -> None:
        """Do nothing: `finish` does."""

    def close(self) -> None:
        """Leave the file open: it is closed where it was opened."""

    def _pieces(self, num_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield where pieces of so many bytes begin and end that fit into the block."""
        begin = 0
        while begin < num_bytes:
            end = min(num_bytes, begin + _BLOCK_BYTES - self._filled)
            yield begin, end
            begin = end

    def _drain(self) -> None:
        left = memoryview(self._block)[: self._filled]
        self.digest.update(left)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._use_page_cache():
                    raise
        self._filled = 0

    def _use_page_cache(self) -> bool:
        """Write through the page cache from here on; return whether that is a change."""
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        if not flags & _DIRECT:
            return False
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~_DIRECT)
        return True


@contextmanager
def created(path: Path) -> Iterator[int]:
    """Open a new file past the page cache, or through it on a file system that has no other way."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        descriptor = os.open(path, flags | _DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
