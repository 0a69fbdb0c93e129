"""A disk that is full, read-only or at a limit: told from other failures, and said so that one can act on it."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter

_REMEDIES = {
    errno.ENOSPC: "make room (--checkpoint.keep 1 keeps fewer checkpoints), or move the run to another --run.dir",
    errno.EDQUOT: "make room within your quota (--checkpoint.keep 1 keeps fewer checkpoints), or use another --run.dir",
    errno.EFBIG: "lift the limit on the size of files (ulimit -f unlimited)",
    errno.EROFS: "make it writable, or use another --run.dir",
    errno.EACCES: "make it writable, or use another --run.dir",
    errno.EPERM: "make it writable, or use another --run.dir",
}


def storage_failure(error: BaseException) -> OSError | None:
    """Return the system's complaint about a file that cannot be written, if `error` comes of one; None if it does not."""
    return next((cause for cause in _causes(error) if isinstance(cause, OSError) and cause.errno in _REMEDIES), None)


def told(complaint: OSError, folder: Path) -> str:
    """Say what could not be written and what to do.

    Args:
        complaint: as `storage_failure` returned it.
        folder: the run folder, named where the system does not say which file it was.
    """
    assert complaint.errno is not None
    place = complaint.filename or f"in {folder}"
    return f"cannot write {place}: {complaint.strerror}; {_REMEDIES[complaint.errno]}"


def lacks_shared_memory(error: BaseException) -> bool:
    """Whether torch could not get shared memory, which it says in words alone."""
    return isinstance(error, RuntimeError) and "unable to allocate shared memory" in str(error)


class PlainWriter(FileSystemWriter):
    """Writes a checkpoint's files, flushed to the disk, and says why where one cannot be written.

    torch's serialisation turns a full disk into "unexpected pos", and what lies behind that is lost between the ranks.
    """

    def __init__(self, folder: Path):
        super().__init__(folder, sync_files=True)
        self.fs = _Files()


class _Files(FileSystem):
    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        try:
            with super().create_stream(path, mode) as stream:
                yield stream
        except Exception as error:
            complaint = storage_failure(error)
            if complaint is None:
                raise
            raise OSError(complaint.errno, complaint.strerror, str(path)) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what it was raised from or during, and what a checkpoint's ranks raised."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        cause = waiting.pop()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        if isinstance(cause, CheckpointException):
            waiting += [failure for failure, _ in cause.failures.values()]
        waiting += [linked for linked in (cause.__cause__, cause.__context__) if linked is not None]
