"""Memory that the process keeps after it was freed, so that a step on a CPU takes no page faults for it."""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_BYTES = 2_000_000_000  # more than any tensor of a step; mallopt takes an int


def keeps_freed_memory() -> bool:
    """Whether `keep_freed_memory` has an effect here: glibc's malloc, whose settings the user has not chosen (MALLOC_*)."""
    return platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ)


def keep_freed_memory() -> None:
    """Have malloc keep what is freed; to be called before torch loads.

    As it comes, glibc maps each large tensor anew and gives it back when it is freed, so that every page of every activation
    is zeroed by the kernel once a step. What is kept is what the step had at its peak.
    """
    if keeps_freed_memory():
        libc = ctypes.CDLL(None)
        for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            libc.mallopt(parameter, _BYTES)
