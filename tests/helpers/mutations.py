"""Mutations for fuzzing: bytes of files, values inside JSON; and cases run in processes of their own."""

from __future__ import annotations

import copy
import os
import random
import resource
import signal
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**64, 10**30, 0.5, -1e308, float("nan"), float("inf")),
    *("", "0", "text", "../../x", "\u0000", "é" * 300, [], [1], ["a"], [None], [[]], {}, {"a": 1}, [0.5] * 50),
]
_INTEGERS = [
    bytes(4),
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\xff\xff",
    b"\xff\xff\0\0",
    b"\0\1\0\0",
]


_WAITING = 5


def mutate_bytes(data: bytes, rng: random.Random, others: Iterable[bytes] = ()) -> bytes:
    """Return the bytes with one to five changes: bits, bytes, integers, parts that go, come twice or come from elsewhere."""
    changed, others = bytearray(data), list(others)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(changed) + 1)
        if rng.random() < 0.4:  # headers decide most
            at = min(at, rng.randrange(64))
        length = rng.choice((1, 2, 4, 16, 64, len(changed) // 4))
        kind = rng.randrange(7 if others else 6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif kind == 2:
            value = rng.choice(_INTEGERS)
            changed[at : at + len(value)] = value
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 1, 20))
        elif kind == 5:
            changed[at : at + length] = rng.randbytes(length)
        elif kind == 6:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            changed[at:at] = other[start : start + length]
    return bytes(changed)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one to three places replaced by an odd value, removed, or moved."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.randint(1, 3)):
        places = list(_places(root))
        holder, key = rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1:
            other, name = rng.choice(places)
            holder[key] = copy.deepcopy(other[name])
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return root[0]


def _places(holder: Any) -> Iterable[tuple[Any, Any]]:
    pairs = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
    for key, value in pairs:
        yield holder, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


@dataclass(frozen=True)
class Report:
    """What became of some cases.

    Attributes:
        cases: how many were tried.
        failures: what went wrong, by case: an exception that is not ours, a signal, too much time or memory.
        peak_bytes: most memory that a process took above what it began with.
    """

    cases: int
    failures: list[str]
    peak_bytes: int


def run_cases(check: Callable[[int], None], cases: range, *, seconds: float, per_process: int = 200) -> Report:
    """Run `check` for each case in forked processes; a case that takes more than `seconds` of processor time is ended."""
    failures, peak = [], 0
    first = cases.start
    while first < cases.stop:
        last = min(first + per_process, cases.stop)
        done, complaints, most, end = _run_some(check, range(first, last), seconds)
        failures += complaints
        peak = max(peak, most)
        if done < last:
            failures.append(f"case {done}: {end}")
            done += 1
        first = done
    return Report(len(cases), failures, peak)


def _run_some(check: Callable[[int], None], cases: range, seconds: float) -> tuple[int, list[str], int, str]:
    """Return the first case that was not ended, the complaints, the peak of memory, and how the process ended."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _child(check, cases, seconds, write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        lines = pipe.read().decode().splitlines()
    _, status = os.waitpid(pid, 0)
    done = cases.start + sum(line.startswith("done") for line in lines)
    peaks = [int(line.split()[1]) for line in lines if line.startswith("done")]
    complaints = [line.removeprefix("failed ") for line in lines if line.startswith("failed ")]
    end = f"signal {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else f"exit {status >> 8}"
    return done, complaints, max(peaks, default=0), end


def _child(check: Callable[[int], None], cases: range, seconds: float, write: int) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in cases:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, _WAITING * seconds)  # what waits for something takes no processor time
        try:
            check(case)
        except BaseException as error:
            place = "; ".join(
                f"{Path(each.filename).name}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)[-3:]
            )
            words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            os.write(write, f"failed case {case}: {words} ({place})\n".encode(errors="replace"))
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin) * 1024
        os.write(write, f"done {peak}\n".encode())
    os._exit(0)
