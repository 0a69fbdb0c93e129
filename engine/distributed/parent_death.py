"""Ranks that do not outlive their launcher: the kernel sends them SIGTERM when it dies, however it dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_FIRST_PROCESS = 1
"""Gets the children of processes that die."""


def stop_with_launcher() -> None:
    """Have the kernel send SIGTERM to this process, a rank, when the launcher that started it dies (prctl(2)); on Linux alone.

    To be called before anything that takes long: a rank whose launcher is dead by then gets its SIGTERM at once, or it would
    look for the launcher's store for as long as ranks may take to come. Nothing is done where there is no launcher.
    """
    if sys.platform != "linux" or not os.environ.get("TORCHELASTIC_RUN_ID"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == _FIRST_PROCESS and not _is_python(_FIRST_PROCESS):
        signal.raise_signal(signal.SIGTERM)


def _is_python(process: int) -> bool:
    """Whether a process runs Python, or nobody may know: in a container the launcher may be the first process."""
    try:
        return b"python" in Path(f"/proc/{process}/cmdline").read_bytes().partition(b"\0")[0]
    except OSError:
        return True
