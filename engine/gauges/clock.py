"""The clock of a run: throughput and data wait of training alone, paused for everything else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


class DeviceWait:
    """Times stretches of the device's own stream, such as the gaps between steps, without ever waiting for it.

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
        """Count how long the device takes for what is inside, or idles while the host waits."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(self._stream)
        yield
        end.record(self._stream)
        self._pending.append((begin, end))

    @property
    def seconds(self) -> float:
        """Seconds of all stretches that the device has passed by now."""
        while self._pending and self._pending[0][1].query():
            begin, end = self._pending.popleft()
            self._seconds += begin.elapsed_time(end) / 1000
        return self._seconds


@dataclass
class Stopwatch:
    """Takes the time of whole epochs, evaluations and checkpoints included.

    Attributes:
        now: seconds on the host.
    """

    now: Callable[[], float] = time.perf_counter
    _since: float | None = None

    def __post_init__(self) -> None:
        self._since = self.now()

    def lap(self, num_devices: int) -> dict[str, float]:
        """Return the seconds since the last lap (before the first: since this process began), and those of all devices."""
        assert self._since is not None
        seconds, self._since = self.now() - self._since, self.now()
        return {"seconds": seconds, "device_seconds": seconds * num_devices}


FORWARD_SHARE = 1 / 3
"""Share of a training step's arithmetic that is its forward pass: the backward pass takes two of the same products."""


@dataclass
class EvaluationClock:
    """Counts the images that were evaluated, and the time that it took.

    Attributes:
        now: seconds on the host.
    """

    now: Callable[[], float] = time.perf_counter
    _images: int = 0
    _seconds: float = 0.0

    @contextmanager
    def timing(self, num_images: int) -> Iterator[None]:
        """Count the time inside as that of a pass over so many images; a pass that does not end is not counted."""
        before = self.now()
        yield
        self._images += num_images
        self._seconds += self.now() - before

    def eta_seconds(self, images_left: int, training_rate: float) -> float:
        """Seconds that so many images take; before the first pass, estimated from the images trained per second."""
        if self._images:
            return images_left * self._seconds / self._images
        return images_left * FORWARD_SHARE / training_rate if training_rate else 0.0


@dataclass
class Clock:
    """Counts training time, images and time spent waiting for data.

    The first `warmup_steps` steps after a start are left out of the rate (allocators, caches and compilation settle in
    them), and so is everything between `stop()` and `start()`.

    Attributes:
        warmup_steps: steps that are left out.
        now: seconds on the host.
        device_wait: counts waiting on the device instead, where steps run on one.
    """

    warmup_steps: int = 2
    now: Callable[[], float] = time.perf_counter
    device_wait: DeviceWait | None = None
    _steps: int = 0
    _images: int = 0
    _waited: float = 0.0
    _trained: float = 0.0
    _since: float | None = field(default=None)

    def start(self) -> None:
        """Begin to count training time."""
        self._since = self.now()

    def stop(self) -> None:
        """Cease to count training time."""
        if self._since is not None and self._steps >= self.warmup_steps:
            self._trained += self.now() - self._since
        self._since = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data (it is training time too)."""
        if self._steps < self.warmup_steps:
            yield
        elif self.device_wait is not None:
            with self.device_wait.measuring():
                yield
        else:
            before = self.now()
            yield
            self._waited += self.now() - before

    @property
    def num_steps(self) -> int:
        """Steps of this process."""
        return self._steps

    def step(self, num_images: int) -> None:
        """Count one finished step of `num_images` images."""
        self._steps += 1
        if self._steps <= self.warmup_steps:
            self._since = self.now()
        else:
            self._images += num_images

    @property
    def training_seconds(self) -> float:
        """Seconds of training that are counted so far."""
        running = self.now() - self._since if self._since is not None and self._steps >= self.warmup_steps else 0.0
        return self._trained + running

    @property
    def images_per_second(self) -> float:
        """Images trained per second over all ranks; 0 before the warm-up ends."""
        return self._images / self.training_seconds if self._images else 0.0

    @property
    def data_wait(self) -> float:
        """Share of training time, in [0, 1], that was spent waiting for the next batch."""
        return self.waited_seconds / self.training_seconds if self._images else 0.0

    @property
    def waited_seconds(self) -> float:
        """Seconds that were spent waiting for the next batch so far."""
        return self._waited if self.device_wait is None else self.device_wait.seconds

    def eta_seconds(self, images_left: int) -> float | None:
        """Seconds of training left at the present rate; None before there is a rate."""
        return images_left / self.images_per_second if self._images else None
