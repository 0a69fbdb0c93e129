"""A thread of each rank that finds ranks that hang, says which and where, and ends them; torch would wait for half an hour.

Each rank's thread writes a pulse into the store every second. Rank 0's reads all of them, the others' rank 0's. A rank whose
process is stopped, or frozen in foreign code, has no pulse; one whose phase takes too long says so itself. Of a phase that has
not been before nobody knows how long it takes: there it is a hang that no rank shows a sign of work. Who finds a hang first
judges it: all ranks are asked where they are, those furthest behind are named, and all end. A store that is gone is a launcher
that is gone: then this rank is asked to save and stop, as by SIGTERM.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.distributed.progress import Patience, Progress
from rlpheads.engine.distributed.signs_of_work import SignsOfWork
from rlpheads.engine.distributed.stacks import main_thread_place, process_state, write_flight_record, write_stacks

_PULSE_S = 1.0
_HUNG = 1
"""Exit code of ranks that a hang ended: a training that failed."""
_PAUSE_S = 15.0
"""Longer than a turn of the thread takes, its waits for the store included."""
_ANSWER_S = 4.0
"""Seconds that ranks have to say where they are."""
_STORE_TIMEOUT = timedelta(seconds=4)
_SAVING_S = 300.0
"""Seconds that a rank without a launcher has to save and stop."""
_ALMOST = 0.9
"""Part of the patience with a silent rank after which it prints its stacks, but never while this thread may just wait for the
store: a print of a rank that runs on may crash it."""
_MOST_NAMED = 8
_JUDGED = "judged"


@dataclass(frozen=True)
class Pulse:
    """One sign of life of a rank.

    Attributes:
        beat: number of this sign.
        overdue: whether its phase takes longer than it may.
        first: whether its phase has not been before.
        stalled: whether it shows no sign of work.
        ended: whether it is the last one.
        place: where its main thread is; known once it was asked.
        collectives: how many it has begun by then.
        waits: whether it waits inside torch there, as those do that wait for others.
    """

    rank: int
    host: str = "?"
    pid: int = 0
    beat: int = 0
    phase: str = "starting"
    step: int = 0
    count: int = 0
    seconds: float = 0.0
    overdue: bool = False
    first: bool = False
    stalled: bool = False
    ended: bool = False
    place: str = ""
    collectives: int = 0
    waits: bool = False

    def next(self, progress: Progress, patience: Patience, *, stalled: bool) -> Pulse:
        """Return the next sign of life of a rank that is so far."""
        return replace(
            self,
            beat=self.beat + 1,
            phase=progress.phase,
            step=progress.step,
            count=progress.count,
            seconds=progress.seconds,
            overdue=progress.is_overdue(patience),
            first=progress.is_first,
            stalled=stalled,
        )

    def describe(self) -> str:
        """Return who it is and what it did."""
        where = f", in {self.place}" if self.place else ""
        return f"rank {self.rank} ({self.host}, process {self.pid}): {self.phase}, step {self.step}{where}"


@contextmanager
def watchdog(launched: Launch, patience: Patience, folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Watch this rank and others while the context is open, in the main thread.

    Args:
        launched: this rank, and its progress.
        patience: what counts as a hang.
        folder: where each rank writes its stacks, `hang.rank0000.txt`, and its last collectives, `hang.rank0000.json`.
        report: gets the verdict, at one rank, before all end.
    """
    thread = _Watch(launched, patience, folder, report)
    thread.start()
    try:
        yield
    finally:
        thread.end()


class _Watch(threading.Thread):
    def __init__(self, launched: Launch, patience: Patience, folder: Path, report: Callable[[str], None]):
        super().__init__(name="rlpheads watchdog", daemon=True)
        self._launched, self._patience, self._folder, self._report = launched, patience, folder, report
        self._store = launched.store.clone()  # the main thread may wait with its own connection
        self._store.set_timeout(_STORE_TIMEOUT)
        self._pulse = Pulse(launched.rank.rank, socket.gethostname(), os.getpid())
        others = [rank for rank in range(launched.world_size) if rank != self._pulse.rank]
        self._watched = others if launched.is_main else [0]
        self._seen = {rank: (Pulse(rank), time.monotonic()) for rank in self._watched}
        self._store_seen = self._looked = time.monotonic()
        self._signs = SignsOfWork(launched.progress)
        self._over = threading.Event()
        self._publish("pulse", self._pulse)

    def end(self) -> None:
        """End the thread; the ranks that watch this one are told."""
        self._over.set()
        self.join()
        self._signs.close()
        faulthandler.cancel_dump_traceback_later()

    def run(self) -> None:
        while not self._over.is_set():
            self._forgive_own_pause()
            # Should Python itself be held, a thread of C prints the stacks.
            held_s = max(_ALMOST * self._patience.silence_s, _PAUSE_S)
            faulthandler.dump_traceback_later(held_s, file=sys.__stderr__ or 2)
            stalled = self._signs.has_stalled(self._patience.silence_s)
            self._pulse = self._pulse.next(self._launched.progress, self._patience, stalled=stalled)
            try:
                self._exchange()
                self._store_seen = time.monotonic()
            except dist.DistError as error:
                self._miss_store(error)
            self._over.wait(_PULSE_S)
        with suppress(dist.DistError):
            self._publish("pulse", replace(self._pulse, beat=self._pulse.beat + 1, ended=True))

    def _forgive_own_pause(self) -> None:
        """Begin to count anew where this process was stopped itself, as by Ctrl-Z, and most likely the others with it."""
        now = time.monotonic()
        if now - self._looked > _PAUSE_S:
            self._seen = {rank: (pulse, now) for rank, (pulse, _) in self._seen.items()}
            self._store_seen = now
            self._launched.progress.restart_phase()
        self._looked = now

    def _exchange(self) -> None:
        self._publish("pulse", self._pulse)
        if self._store.check([_JUDGED]):
            self._answer()
            time.sleep(2 * _ANSWER_S)  # the judge speaks first
            os._exit(_HUNG)
        silent = self._find_silent()
        if (silent or self._pulse.overdue or self._nobody_works()) and self._store.add(_JUDGED, 1) == 1:
            self._answer()
            time.sleep(_ANSWER_S)
            self._report(self._verdict())
            os._exit(_HUNG)

    def _find_silent(self) -> list[int]:
        """Read the pulses of the watched ranks; return those without a new one for too long."""
        now = time.monotonic()
        for rank in self._watched:
            pulse, _ = self._seen[rank]
            if not pulse.ended and (found := self._read("pulse", rank)) is not None and found.beat != pulse.beat:
                self._seen[rank] = found, now
        limit = self._patience.silence_s
        return [rank for rank, (pulse, since) in self._seen.items() if not pulse.ended and now - since > limit]

    def _nobody_works(self) -> bool:
        """Whether no rank shows a sign of work, in a phase that has not been before; the main rank alone can tell."""
        pulses = [self._pulse, *(pulse for pulse, _ in self._seen.values() if not pulse.ended)]
        stalled = all(pulse.stalled for pulse in pulses) and any(pulse.first for pulse in pulses)
        return self._launched.is_main and stalled

    def _answer(self) -> None:
        """Say where this rank is, and write its stacks."""
        self._launched.progress.is_judged = True
        faulthandler.cancel_dump_traceback_later()
        place, waits = main_thread_place()
        name = f"hang.rank{self._pulse.rank:04d}"
        with suppress(OSError):
            write_stacks(self._folder / f"{name}.txt")
            write_flight_record(self._folder / f"{name}.json")
        begun = self._launched.collectives_begun
        self._publish("answer", replace(self._pulse, place=place, collectives=begun, waits=waits))

    def _verdict(self) -> str:
        """Say which ranks hang, from the answers of those that gave one."""
        ranks = range(self._launched.world_size)
        answers = {rank: found for rank in ranks if (found := self._read("answer", rank)) is not None}
        pulses = {rank: self._read("pulse", rank) or Pulse(rank) for rank in ranks if rank not in answers}
        silent = [f"{pulse.describe()}; {self._state_of(pulse)}" for pulse in pulses.values() if not pulse.ended]
        if silent:
            return f"hang: no sign of life of {_joined(silent)}. {self._where_to_look()}"
        behind = [f"{pulse.describe()}, since {pulse.seconds:.0f} s" for pulse in _furthest_behind(answers)]
        return f"hang: no progress of {_joined(behind)}. {self._where_to_look()}"

    def _state_of(self, pulse: Pulse) -> str:
        state = f"its process is {process_state(pulse.pid)}" if pulse.host == self._pulse.host else "on another host"
        return f"silent for more than {self._patience.silence_s:g} s; {state}"

    def _where_to_look(self) -> str:
        return (
            f"Stacks are in {self._folder}/hang.rank*.txt; the same command goes on from the last checkpoint "
            "(--distributed.timeout SECONDS waits longer)"
        )

    def _miss_store(self, error: dist.DistError) -> None:
        """Stop this rank where the store is gone, or silent for too long; the run may just have ended."""
        silence = time.monotonic() - self._store_seen
        if silence < self._patience.silence_s and not isinstance(error, dist.DistNetworkError):
            return
        if self._over.wait(5):
            return
        print(f"rank {self._pulse.rank}: the launcher is gone; saving, and stopping", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._over.wait(_SAVING_S):
            os._exit(_HUNG)

    def _publish(self, kind: str, pulse: Pulse) -> None:
        self._store.set(f"{kind}/{pulse.rank}", json.dumps(asdict(pulse)))

    def _read(self, kind: str, rank: int) -> Pulse | None:
        key = f"{kind}/{rank}"
        return Pulse(**json.loads(self._store.get(key))) if self._store.check([key]) else None


def _furthest_behind(answers: Mapping[int, Pulse]) -> list[Pulse]:
    """Return the ranks that the others wait for: fewest phases and collectives begun, and of those the ones that do not wait.

    Waiting is seen where the main thread is inside torch; where it waits in a function of C, the collectives tell.
    """
    least = min((pulse.count, pulse.collectives) for pulse in answers.values())
    behind = [pulse for pulse in answers.values() if (pulse.count, pulse.collectives) == least]
    return [pulse for pulse in behind if not pulse.waits] or behind


def _joined(descriptions: list[str]) -> str:
    more = f"; and of {len(descriptions) - _MOST_NAMED} more" if len(descriptions) > _MOST_NAMED else ""
    return "; ".join(descriptions[:_MOST_NAMED]) + more
