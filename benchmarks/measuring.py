"""What the benchmarks share: interleaved timing, memory peaks, and a results folder that a broken-off run goes on in.

Contenders are timed in one process, once each a round, in an order that rotates: whatever else the machine does meets all
of them alike. Read medians, and ratios of times that were taken in the same round.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

from rlpheads.engine.runs.environment import collect_environment

RESULTS = Path(__file__).resolve().parent / "results"


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 1,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time every contender once a round; round r begins with contender r.

    Args:
        contenders: calls without arguments, by name. What one returns is dropped before the next is timed.
        rounds: rounds that count.
        warmup: rounds before them that do not.
        device: "cuda" to wait for the device before and after each call.
        clock: tells seconds.

    Returns:
        Seconds of each round, by name: the n-th entries of all lists belong to one round.
    """
    names, seconds = list(contenders), {name: [0.0] * rounds for name in contenders}
    for number in range(-warmup, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            elapsed = time_once(contenders[name], device, clock)
            if number >= 0:
                seconds[name][number] = elapsed
    return seconds


def time_once(call: Callable[[], object], device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that a call takes, the device's work included; its result is freed outside the time."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    elapsed = clock() - start
    del result
    return elapsed


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median over the rounds of the quotient of the two times of a round."""
    return median(over / under for over, under in zip(numerator, denominator, strict=True))


def ratio_interval(numerator: list[float], denominator: list[float]) -> tuple[float, float]:
    """95 % interval of `ratio`, by the order statistics of the rounds' quotients; least and most of fewer than 9 rounds."""
    quotients = sorted(over / under for over, under in zip(numerator, denominator, strict=True))
    outside = values_outside(len(quotients))
    return quotients[outside], quotients[-1 - outside]


def values_outside(count: int) -> int:
    """How many of so many values lie below the 95 % interval of their median, and as many above it.

    A value lies below the median as a coin shows heads: of `count` throws that many heads or fewer come in 2.5 % of all cases
    at most, and one more in more, by exact integers.
    """
    chances = accumulate(math.comb(count, heads) for heads in range(count + 1))
    return max(sum(40 * at_most <= 2**count for at_most in chances) - 1, 0)


def peak_extra_bytes(call: Callable[[], object], device: str = "cpu") -> int:
    """How far a call raises the memory in use above what it is when it starts, in bytes.

    On the CPU this is the resident memory of the process and needs Linux; call it in a fresh process
    (`in_fresh_process`), where no memory that an earlier call gave back is at hand.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = _process_bytes("VmRSS")
    call()
    return _process_bytes("VmHWM") - before


def _process_bytes(name: str) -> int:
    """A figure of this process's memory that Linux keeps."""
    return int(re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a module in a process of its own, and return what it returns."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def device_slug(device: str) -> str:
    """Name of the device for a folder: cpu2 for two threads of a CPU, or the GPU's own name."""
    if device == "cpu":
        return f"cpu{torch.get_num_threads()}"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


class Results:
    """The folder benchmarks/results/THEME_DEVICE_DATE: environment.json, and in runs.jsonl one line for each case.

    Lines are written as they are measured. The same command at the same commit finds them and need not repeat them; another
    one gets a folder of its own, THEME_DEVICE_DATE_2 and so on. In a folder that is given, lines of other commits stay, and
    count for nothing. Changes that are not committed it cannot see.
    """

    def __init__(self, theme: str, device: str, folder: Path | None = None) -> None:
        environment = collect_environment()
        self.folder = folder or _folder_of(f"{theme}_{device_slug(device)}_{date.today():%Y-%m-%d}", environment)
        self.folder.mkdir(parents=True, exist_ok=True)
        del environment["python"][
            "executable"
        ]  # results are published; a path on this machine is of no use to a reader
        self._commit = environment["git"] and environment["git"]["commit"]
        (self.folder / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
        self._path = self.folder / "runs.jsonl"

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of this commit, in the order in which they were measured."""
        if not self._path.exists():
            return []
        lines = [json.loads(text) for text in self._path.read_text().splitlines()]
        return [line for line in lines if line["commit"] == self._commit]

    def find(self, **case: Any) -> dict[str, Any] | None:
        """The line of a case, if it was measured."""
        case = json.loads(json.dumps(case))  # as it comes back from the file
        return next((line for line in self.lines if line["case"] == case), None)

    def measure(self, call: Callable[[], Mapping[str, Any]], **case: Any) -> dict[str, Any]:
        """Return the line of a case: the one that is there, or else what `call` measures, written down."""
        found = self.find(**case)
        if found is None:
            found = {"case": case, "commit": self._commit, **call()}
            with self._path.open("a") as file:
                file.write(json.dumps(found) + "\n")
        return found

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder: a rendered table, say."""
        (self.folder / name).write_text(text)

    def write_json(self, name: str, value: Any) -> None:
        """Write a file of the folder from plain values."""
        self.write(name, json.dumps(value, indent=2) + "\n")


def _folder_of(name: str, environment: Mapping[str, Any]) -> Path:
    """Return the first folder of a name that no other command or commit has written to."""
    folder, number = RESULTS / name, 1
    while (written := folder / "environment.json").exists():
        if _command_and_commit(json.loads(written.read_text())) == _command_and_commit(environment):
            break
        number += 1
        folder = RESULTS / f"{name}_{number}"
    return folder


def _command_and_commit(environment: Mapping[str, Any]) -> tuple[Any, Any]:
    return environment["command"], environment["git"] and environment["git"]["commit"]
