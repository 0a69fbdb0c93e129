"""Heartbeats of loader workers: a worker that is stopped, or frozen in foreign code, is told from one that is slow."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import torch

_EVERY_S = 1.0
_STATES = {"T": "stopped by a signal", "D": "waiting for a disk or the network", "R": "running", "S": "waiting"}
"""Letters of /proc/PID/stat: proc(5)."""


class WorkerHeartbeats:
    """When each worker was last alive, in memory shared with the parent; the clock is the machine's own.

    Args:
        num_workers: loader workers; 0 where there are none.
    """

    def __init__(self, num_workers: int):
        self._pid_and_ms = torch.zeros((max(1, num_workers), 2), dtype=torch.int64).share_memory_()

    def start(self, worker_id: int) -> None:
        """Begin to beat, in a worker, from a thread of its own."""
        threading.Thread(target=self._beat, args=(worker_id,), daemon=True).start()

    def _beat(self, worker_id: int) -> None:
        row = self._pid_and_ms.numpy()[worker_id]
        while True:
            row[:] = os.getpid(), time.monotonic_ns() // 1_000_000
            time.sleep(_EVERY_S)

    def silent_since(self, began: float, silence_s: float) -> list[int]:
        """Return the process ids of workers without a beat for `silence_s` seconds, of a wait that began at `began`.

        A worker that has never begun to beat has none: 0.
        """
        latest = time.monotonic() - silence_s
        return [pid for pid, ms in self._pid_and_ms.tolist() if max(began, ms / 1000) < latest]


def describe_process(pid: int) -> str:
    """Name a worker's process, and what the kernel says that it does."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return f"process {pid}"
    return f"process {pid}, which is {_STATES.get(letter, letter)}"
