"""Runs that are started by whole commands: `python engine/train.py`, torchrun, `rlpheads train`."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from started_run import StartedRun
from typing_extensions import override

ROOT = Path(__file__).resolve().parents[1]
OWN = "KILLED_RUN"
"""Environment variable by which the processes of a whole command are found again when their launcher is dead."""


class CommandRun(StartedRun):
    """A whole command, with all its processes.

    Args:
        command: its words.
        log: gets what it prints.
    """

    def __init__(self, command: Sequence[str], log: Path):
        self._mark = f"{log}.{time.monotonic_ns()}"
        with log.open("a") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, OWN: self._mark},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._is_launcher = "--nproc-per-node" in command

    @override
    def ranks(self) -> dict[int, int]:
        if not self._is_launcher:
            return {0: self._process.pid} if self._process.poll() is None else {}
        found: dict[int, int] = {}
        with suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children():
                with suppress(psutil.Error, KeyError):
                    found[int(child.environ()["RANK"])] = child.pid
        return found

    @property
    @override
    def launcher(self) -> int | None:
        return self._process.pid if self._is_launcher and self._process.poll() is None else None

    @override
    def has_ended(self) -> bool:
        return self._process.poll() is not None and not any(True for _ in self._left())

    @property
    @override
    def code(self) -> int | None:
        return self._process.poll()

    @override
    def kill(self) -> None:
        self._process.kill()
        for process in self._left():
            with suppress(psutil.Error):
                process.kill()

    def _left(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(OWN) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
