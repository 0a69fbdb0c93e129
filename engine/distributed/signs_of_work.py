"""Whether a rank works, as far as its process shows: where nobody knows how long a phase may take, this tells a hang.

A first step may compile for half an hour, and a first batch may start many processes. Each of these uses cores, or reads and
writes, and comes to lines of code where it has not been. A rank that waits for ever does none of that, and one that runs in a
circle uses a core, but comes to no new line. A long loop over the same lines says that it gets on (`Progress.take_turn`).
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil
import torch

from rlpheads.engine.distributed.progress import Progress

_PULSE = signal.SIGURG
"""A signal that Python alone is told of, and that nothing else uses."""
_EFFORT_S = 1.0
"""Seconds of a core that are a sign of work: more than threads take that look now and then whether there is something to do."""
_EFFORT_BYTES = 1 << 20
_ROUNDING_S = 2 / os.sysconf("SC_CLK_TCK")
"""CPU seconds of processes are counted in ticks: the difference of two counts may be so much where nothing was done."""
_QUIET_S = 5.0
"""Seconds for which a phase is not looked at; steps are shorter."""


class _Effort(NamedTuple):
    """What was done since the process began.

    Attributes:
        main_s: seconds that the main thread ran or waited for a core: on a crowded machine it is the wish that counts.
        waited_s: those of them that it waited.
        other_s: CPU seconds of other threads but the one that asks, and of the processes that were started from here.
        moved: bytes that were read and written, but by the thread that asks.
    """

    main_s: float
    waited_s: float
    other_s: float
    moved: int


class SignsOfWork:
    """Looks at this process and its children; to be made in the main thread, and asked by another, about once a second.

    Args:
        progress: what the main thread does.
    """

    def __init__(self, progress: Progress):
        self._progress = progress
        self._main = threading.main_thread()
        self._ran: dict[int, FrameType | None] = {}
        # A function of C: one of Python, called while a step is compiled, would be compiled as a part of it.
        self._before = signal.signal(_PULSE, self._ran.setdefault)
        self._count = -1

    def close(self) -> None:
        """Take back what was installed; in the main thread."""
        signal.signal(_PULSE, self._before)

    def has_stalled(self, silence_s: float) -> bool:
        """Whether the phase shows no work for so many seconds, and for as long as it had worked until then."""
        if self._progress.count != self._count:
            self._begin()
        if self._progress.seconds < _QUIET_S:
            return False
        self._look()
        # A thread that is not let onto a core stands still for no fault of its own.
        idle_s = time.monotonic() - self._worked - (self._seen.waited_s - self._counted.waited_s)
        return idle_s > max(silence_s, self._worked - self._began)

    def _begin(self) -> None:
        self._count = self._progress.count
        self._began = self._worked = time.monotonic()
        self._turns = self._progress.turns
        self._lines: set[tuple[str, int]] = set()
        self._seen = self._counted = _measure(self._main)
        self._effort_s = 0.0

    def _look(self) -> None:
        """Add up what was done since the last look, and note the time where it is enough."""
        now = _measure(self._main)
        if self._main_gets_on():
            self._effort_s += now.main_s - self._seen.main_s
        spent_s = now.other_s - self._seen.other_s  # less than nothing where a child has ended
        self._effort_s += spent_s if spent_s > _ROUNDING_S else 0.0
        self._seen = now
        if self._progress.turns != self._turns:
            self._turns, self._effort_s = self._progress.turns, _EFFORT_S
        if self._effort_s >= _EFFORT_S or abs(now.moved - self._counted.moved) >= _EFFORT_BYTES:
            self._worked, self._effort_s, self._counted = time.monotonic(), 0.0, now

    def _main_gets_on(self) -> bool:
        """Whether the main thread is at a new line, or inside a function of C that does not merely wait for the device."""
        ran_python = bool(self._ran)
        self._ran.clear()
        _thread.interrupt_main(_PULSE)  # its handler runs before the next look, unless a function of C goes on as long
        lines: set[tuple[str, int]] = set()
        leaf = ""
        frame = sys._current_frames().get(self._main.ident or 0)
        while frame is not None:
            leaf = leaf or frame.f_code.co_filename
            lines.add((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
        new = lines - self._lines
        self._lines |= new
        waits_for_device = Path(torch.cuda.__file__).parent in Path(leaf).parents
        return bool(new) or not (ran_python or waits_for_device)


def _measure(main: threading.Thread) -> _Effort:
    processes = [psutil.Process()]
    with suppress(psutil.Error):
        processes += processes[0].children(recursive=True)
    ran_s, waited_s = _scheduled(main)
    other_s = sum(map(_cpu_seconds, processes)) - ran_s - time.thread_time()
    moved = sum(_moved_bytes(Path(f"/proc/{process.pid}/io")) for process in processes)
    return _Effort(
        ran_s + waited_s, waited_s, other_s, moved - _moved_bytes(Path("/proc/thread-self/io"))
    )  # looking reads, too


def _scheduled(thread: threading.Thread) -> tuple[float, float]:
    """Return the seconds that a thread has run and has waited for a core; of its process, where the kernel does not tell."""
    with suppress(OSError, ValueError):
        ran, waited, _ = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()
        return int(ran) / 1e9, int(waited) / 1e9
    return time.process_time(), 0.0


def _cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU seconds of a process, and of its children that have ended."""
    with suppress(psutil.Error):
        times = process.cpu_times()
        return times.user + times.system + times.children_user + times.children_system
    return 0.0


def _moved_bytes(counts: Path) -> int:
    """Return the bytes that were read and written, from a file of the kernel's: proc(5); 0 where there is none."""
    with suppress(OSError, ValueError):
        numbers = dict(line.split(": ") for line in counts.read_text().splitlines())
        return sum(int(numbers[name]) for name in ("rchar", "wchar", "read_bytes", "write_bytes"))
    return 0
