"""Files of a scanned tree, read only where they are regular files: a named pipe would block, a device would not end."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_listed_file(path: Path, size: int) -> bytes:
    """Read a file that had `size` bytes when its folder was scanned.

    Opening does not wait for the other end of a pipe, and no more than `size` bytes are read.

    Raises:
        OSError: If it cannot be opened or read.
        ValueError: If it is no regular file any more, or has another size.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        data = file.read(size) if status.st_size == size else b""
    found = len(data) if status.st_size == size else status.st_size
    if found != size:
        raise ValueError(f"it has {found} bytes, but {size} when the folder was scanned (--data.rescan scans it anew)")
    return data
