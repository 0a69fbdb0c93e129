"""Files that cannot be written or read (disk full, quota, permission, I/O error): recognised, with what to do about each."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WRITING = {
    errno.ENOSPC: "make room (--checkpoint.keep 1 keeps fewer checkpoints), or move the run to another --run.dir",
    errno.EDQUOT: "make room within your quota (--checkpoint.keep 1 keeps fewer checkpoints), or use another --run.dir",
    errno.EFBIG: "lift the limit on the size of files (ulimit -f unlimited)",
    errno.EROFS: "make it writable, or use another --run.dir",
}
"""What to do about complaints that only writing meets."""

_DENIED = (errno.EACCES, errno.EPERM)
_BROKEN = (errno.EIO, errno.ESTALE, errno.ENOTCONN)
_KNOWN = frozenset({*_WRITING, *_DENIED, *_BROKEN, errno.EMFILE, errno.ENFILE})


def storage_failure(error: BaseException, folder: Path) -> OSError | None:
    """Return the system's complaint about a file, if `error` comes of one that something can be done about.

    That is a full or failing disk, a limit or a missing right, wherever it is met, and any complaint about a file of
    `folder`. None of anything else.
    """
    complaints = (cause for cause in _chain(error) if isinstance(cause, OSError) and cause.errno is not None)
    return next((found for found in complaints if found.errno in _KNOWN or _lies_in(found, folder)), None)


def describe_storage_failure(complaint: OSError, folder: Path) -> str:
    """Say what could not be done with which file, and what to do.

    Args:
        complaint: the system's, of a known `errno`.
        folder: the run folder, named where the system does not say which file it was.
    """
    path = _path(complaint)
    doing, remedy = _action_and_remedy(complaint, path)
    return f"cannot {doing} {path or f'in {folder}'}: {complaint.strerror}; {remedy}"


def _action_and_remedy(complaint: OSError, path: Path | None) -> tuple[str, str]:
    """Return what was being done and what to do now."""
    if complaint.errno in _WRITING:
        return "write", _WRITING[complaint.errno]
    if complaint.errno in _DENIED:
        doing, remedy = ("write", "make it writable") if path is None else _missing_permission(path)
        return doing, f"{remedy}, or use another --run.dir"
    if complaint.errno in _BROKEN:
        return "use", "its disk or network file system fails: have it looked at, or use another --run.dir"
    if complaint.errno in (errno.EMFILE, errno.ENFILE):
        return "open", "lift the limit on open files (ulimit -n), or take fewer --data.workers"
    return "use", "something has removed or replaced what the run had there: put it back, or use another --run.name"


def _missing_permission(path: Path) -> tuple[str, str]:
    """Return what this process lacks the right to do with a file, and which right to give it.

    The system does not say which it was that it refused, but what is allowed can be asked.
    """
    closed = [parent for parent in reversed(path.parents) if not os.access(parent, os.X_OK)]
    if closed:
        return "reach", f"make the folder {closed[0]} accessible (chmod u+rwx)"
    readable, writable = (os.access(path, right) or not path.exists() for right in (os.R_OK, os.W_OK))
    if readable:
        return "write", "make it writable" if not writable else f"make the folder {path.parent} writable"
    return ("read", "make it readable") if writable else ("open", "make it readable and writable")


def _path(complaint: OSError) -> Path | None:
    """Return the file that the system complains about: of a move, where it was to go."""
    name = complaint.filename2 or complaint.filename
    path = Path(os.fsdecode(name)) if isinstance(name, (str, bytes)) else None
    return None if path is None or path.parent == Path() else path  # a bare name is one in a folder that is open


def _lies_in(complaint: OSError, folder: Path) -> bool:
    path = _path(complaint)
    return path is not None and path.absolute().is_relative_to(folder.absolute())


@contextmanager
def named_complaints(path: Path) -> Iterator[None]:
    """Let what the system complains of on the way of a file to the disk name that file.

    torch's serialisation turns a full disk into "unexpected pos", and what lies behind that is lost between the ranks.
    """
    try:
        yield
    except Exception as error:
        complaint = storage_failure(error, path.parent)
        if complaint is None:
            raise
        raise OSError(complaint.errno, complaint.strerror, str(path)) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what it was raised from or during, and what a checkpoint's ranks raised."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        cause = waiting.pop()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += _of_ranks(cause)
        waiting += [linked for linked in (cause.__cause__, cause.__context__) if linked is not None]


def _of_ranks(error: BaseException) -> list[BaseException]:
    """Return what a checkpoint's ranks raised, of torch's error that gathers it; its module is loaded where there is one."""
    module = sys.modules.get("torch.distributed.checkpoint.api")
    if module is None or not isinstance(error, module.CheckpointException):
        return []
    return [failure for failure, _ in error.failures.values()]
