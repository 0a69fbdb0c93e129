"""Ranks that do not outlive their launcher: the kernel sends them SIGTERM when it dies, however it dies."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def stop_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies (prctl(2)); on Linux alone.

    A rank then saves and stops. Where the parent is dead already, the silence of its store tells.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
