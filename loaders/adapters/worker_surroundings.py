"""What worker processes need of the machine: a short path for temporary files, and room in shared memory.

Without them a worker's batch is lost after it is made, in a thread that nobody hears, and its parent would wait for ever.
"""

from __future__ import annotations

import os
import tempfile
from math import ceil
from pathlib import Path

from rlpheads.loaders.contract.options import LoaderOptions

_SOCKET_PATH_BYTES = 107
"""The longest path of a Unix socket on Linux (`sun_path` in man 7 unix, less the zero byte)."""
_SOCKET_NAME_BYTES = len("/pymp-12345678/listener-12345678")
"""What Python's multiprocessing makes below the temporary folder."""
_SEMAPHORES_BYTES = 64 * 1024
"""Shared memory of a loader's queues and of its notes, generously: a page for each."""
_SHARED_MEMORY = Path("/dev/shm")


def why_no_sockets() -> str | None:
    """Return why workers cannot hand batches over by way of a socket in the temporary folder; None where they can."""
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        return f"TMPDIR: {error.strerror}; loader workers need a folder for temporary files"
    most = _SOCKET_PATH_BYTES - _SOCKET_NAME_BYTES
    if (given := len(os.fsencode(folder))) <= most:
        return None
    return (
        f"TMPDIR: got a folder whose path has {given} bytes ({folder}); allowed with loader workers: at most {most}, for they "
        "have sockets there (such as TMPDIR=/tmp)"
    )


def why_no_shared_memory(num_rows: int, side: int, options: LoaderOptions, num_loaders: int) -> str | None:
    """Return why the batches that are under way do not fit into shared memory; None where they do.

    Args:
        num_rows: rows of a batch of this rank.
        side: of the square images, in pixels.
        options: of each loader.
        num_loaders: loaders at work on this machine at once, one a rank.
    """
    try:
        shared = os.statvfs(_SHARED_MEMORY)
    except OSError:  # not the system's way of sharing memory
        return None
    free = shared.f_bavail * shared.f_frsize
    batch = sum(_whole_pages(size) for size in (num_rows * 3 * side * side, num_rows * 8, num_rows * 8))
    under_way = options.num_workers * options.prefetch + 1
    needed = num_loaders * (under_way * batch + _SEMAPHORES_BYTES)
    if needed <= free:
        return None
    return (
        f"{_SHARED_MEMORY}: {free:,} bytes are free, and the batches that loader workers make ahead take {needed:,} "
        f"({num_loaders} x {under_way} x {batch:,}); give it more room (docker run --shm-size 8g)"
    )


def _whole_pages(num_bytes: int, page: int = 4096) -> int:
    return ceil(num_bytes / page) * page
