"""Heartbeats of loader workers: a worker that is stopped, or frozen in foreign code, is told from one that is slow."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_EVERY_S = 1.0
_STATES = {"T": "stopped by a signal", "D": "waiting for a disk or the network", "R": "running", "S": "waiting"}
"""Letters of /proc/PID/stat: proc(5)."""


class WorkerHeartbeats:
    """When each worker was last alive, in memory shared with the parent; the clock is the machine's own.

    Args:
        num_workers: loader workers; 0 where there are none.

    Attributes:
        frozen: process id of a worker without a heartbeat for too long, and what it did, once there was one.
    """

    def __init__(self, num_workers: int):
        self._pid_and_ms = torch.zeros((num_workers, 2), dtype=torch.int64).share_memory_()
        self.frozen: tuple[int, str] | None = None

    def start(self, worker_id: int) -> None:
        """Begin to beat, in a worker, from a thread of its own."""
        threading.Thread(target=self._beat, args=(worker_id,), daemon=True).start()

    def _beat(self, worker_id: int) -> None:
        row = self._pid_and_ms.numpy()[worker_id]
        while True:
            row[:] = os.getpid(), time.monotonic_ns() // 1_000_000
            time.sleep(_EVERY_S)

    @contextmanager
    def watched(self, silence_s: float) -> Iterator[None]:
        """Kill a worker that has no heartbeat for `silence_s` seconds, in the parent, while the context is open.

        Whoever waits for it then gets an error; torch waits for a stopped worker's answer without end.
        """
        self._pid_and_ms.zero_()
        over = threading.Event()
        if len(self._pid_and_ms):
            threading.Thread(target=self._watch, args=(silence_s, over), daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, silence_s: float, over: threading.Event) -> None:
        began = looked = time.monotonic()
        while not over.wait(_EVERY_S) and self.frozen is None:
            now = time.monotonic()
            if now - looked > 3 * _EVERY_S:  # this process was stopped itself, and the workers with it
                began = now
            looked = now
            silent = [pid for pid, ms in self._pid_and_ms.tolist() if pid and max(began, ms / 1000) < now - silence_s]
            for pid in silent:
                self.frozen = self.frozen or (pid, _state_of(pid))
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # SIGTERM does not reach a stopped process


def _state_of(pid: int) -> str:
    """Return what the kernel says that a process does."""
    with suppress(OSError, IndexError):
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return _STATES.get(letter, letter)
    return "gone"
