"""The lease of a run folder: who uses it from which host. A lock alone may be unknown to the other hosts of a file system.

The main rank writes a new beat every few seconds. A start on another host that finds a lease looks whether it beats, takes it
over when it has not for `SILENCE_S`, and is refused when it has. No clocks are compared. Who finds that its lease was taken
ends at once, and writes no more.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

LEASE = "lease.json"
SILENCE_S = 60.0
_BEAT_S = 5.0
_TAKEN = 1
"""Exit code of a run whose folder was taken over: a training that failed."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, and how often it said so."""

    host: str
    pid: int
    word: str
    beat: int = 0

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is on another host."""
        return self.host != socket.gethostname()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def read_lease(path: Path) -> Holder | None:
    """Return who holds, or held and did not give back, the lease of a run folder; None where that cannot be read."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        found: dict[str, Any] = json.loads((path / LEASE).read_text())
        return Holder(str(found["host"]), int(found["pid"]), str(found["word"]), int(found["beat"]))
    return None


def wait_for_lease(path: Path, silence_s: float = SILENCE_S) -> Holder | None:
    """Wait until a holder on another host has been silent for `silence_s` seconds; return it if it gave a sign of life.

    One on this host is left to the lock, which knows at once that a process is dead.
    """
    first = read_lease(path)
    if first is None or not first.is_elsewhere:
        return None
    print(f"{path} is held by {first}; waiting up to {silence_s:.0f} s for a sign of life", file=sys.stderr)
    deadline = time.monotonic() + silence_s
    while time.monotonic() < deadline:
        if (now := read_lease(path)) is None:  # given back
            return None
        if now != first:
            return now
        time.sleep(min(1.0, silence_s / 10))
    return None


@contextmanager
def kept_lease(path: Path, beat_s: float = _BEAT_S) -> Iterator[None]:
    """Hold the lease of a run folder while the context is open, and give it back."""
    holder = Holder(socket.gethostname(), os.getpid(), uuid.uuid4().hex)
    _write(path, holder)
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, holder, beat_s, over), name="rlpheads lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if (now := read_lease(path)) is not None and now.word == holder.word:
            (path / LEASE).unlink(missing_ok=True)


def _beat(path: Path, holder: Holder, beat_s: float, over: threading.Event) -> None:
    while not over.wait(beat_s):
        now = read_lease(path)
        if now is not None and now.word != holder.word:
            print(f"error: {path} was taken over by {now}; this run ends", file=sys.stderr)
            os._exit(_TAKEN)
        holder = replace(holder, beat=holder.beat + 1)
        _write(path, holder)


def _write(path: Path, holder: Holder) -> None:
    """Replace the file, unless the disk does not let it: what matters more will say so."""
    temporary = path / f".{LEASE}.{holder.pid}.tmp"
    with suppress(OSError):  # not flushed: it is worth nothing after a power failure
        temporary.write_text(json.dumps(asdict(holder)) + "\n")
        temporary.replace(path / LEASE)
