"""Data wait of a CUDA device: how long it idles between steps for want of a batch, from events in its stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DeviceWait:
    """Times the gaps between steps on the device's own stream, without ever waiting for it.

    The host runs ahead of the device, so the time that it spends waiting for a batch says little: as long as the device
    still works on the step before, nothing is lost. A pair of events brackets each wait in the device's stream; where the
    batch is there in time, the device passes one right after the other.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._seconds = 0.0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count how long the device idles while the host waits inside."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(self._stream)
        yield
        end.record(self._stream)
        self._pending.append((begin, end))

    @property
    def seconds(self) -> float:
        """Seconds of idling, over the waits that the device has passed by now."""
        while self._pending and self._pending[0][1].query():
            begin, end = self._pending.popleft()
            self._seconds += begin.elapsed_time(end) / 1000
        return self._seconds
