"""Memory that is not to be had, on a GPU, in the process or in /dev/shm: told with what takes less of it."""

from __future__ import annotations

import torch


def memory_failure(error: BaseException) -> str | None:
    """Return what lacked memory and what to do, in one line; None for an error of another sort.

    Torch tells two of the three in words alone.
    """
    words = str(error)
    if isinstance(error, RuntimeError) and "unable to allocate shared memory" in words:
        remedy = "give /dev/shm more room (docker run --shm-size 8g), or load without processes: --data.workers 0"
        return f"no shared memory for the loader: {words}; {remedy}"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in words:
        least = "fewer --heads.labels, --heads.draws or --heads.taps, a smaller --batch_size, or more --accumulate"
        return f"out of memory: {words.splitlines()[0] if words else type(error).__name__}; give {least}"
    return None
