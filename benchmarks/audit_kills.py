"""Signals in the middle of `rlpheads audit`, and whether the same command then finds what an undisturbed one finds."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from forked_run import ForkedRun
from started_run import wait

_ENDED = 3
"""Starts of a case that meet a signal."""


@dataclass(frozen=True)
class AuditPhase:
    """A part of an audit.

    Attributes:
        name: shown.
        module: the module of rlpheads with the function that begins it.
        function: its name; a method's with its class.
        after_s: seconds from its beginning to the signal, for the first start; the second waits twice as long, and so on.
    """

    name: str
    module: str
    function: str
    after_s: float = 0.0


AUDIT_PHASES = (
    AuditPhase("audit: features", "engine.audits.audit_features", "FeatureStore.read", 0.01),
    AuditPhase("audit: probes", "engine.audits.audit_run", "audit_features", 0.01),
    AuditPhase("audit: its file", "engine.audits.audit_run", "write_atomically"),
)


def run_audit_case(folder: Path, finished: Path, phase: AuditPhase, signal_name: str) -> dict[str, Any]:
    """Audit a copy of a finished run, three times disturbed and once not; return what was seen.

    Args:
        folder: of all runs.
        finished: a run that is done.
        phase: where the signal comes.
        signal_name: "SIGTERM" and so on.
    """
    whole, run = folder / "audited", folder / f"{phase.name}-{signal_name}".replace(" ", "-").replace(":", "")
    codes: list[int | str | None] = []
    if not (whole / "audit").exists():
        shutil.rmtree(whole, ignore_errors=True)
        shutil.copytree(finished, whole)
        _start(whole, whole.with_suffix(".txt"), None)
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(finished, run)
    for disturbed in (*range(_ENDED), None):
        strike = None if disturbed is None else partial(_send_in, phase, signal_name, phase.after_s * (disturbed + 1))
        codes.append(_start(run, run.with_suffix(".txt"), strike))
    ours, theirs = (_files(each) for each in (run, whole))
    differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    if not differing:
        shutil.rmtree(run)
    outcome = f"other files: {', '.join(differing[:5])}" if differing else "equal"
    met = sum(code not in (0, "hang") for code in codes)
    return {"phase": phase.name, "signal": signal_name, "ranks": 1, "met": met, "codes": codes, "outcome": outcome}


def _start(run: Path, log: Path, disturb: Callable[[], None] | None) -> int | str | None:
    started = ForkedRun([], 1, log, partial(_audit_instead, run, disturb))
    return started.code if wait(started) else "hang"


def _audit_instead(run: Path, disturb: Callable[[], None] | None, _rank: int) -> None:
    from rlpheads.engine import cli

    if disturb is not None:
        disturb()
    sys.exit(cli.main(["audit", str(run), "--draws", "8"]))


def _send_in(phase: AuditPhase, signal_name: str, after_s: float) -> None:
    """Have this process get a signal inside a phase of its audit."""
    *holder, name = phase.function.split(".")
    place: Any = importlib.import_module(f"rlpheads.{phase.module}")
    for each in holder:
        place = getattr(place, each)
    whole = getattr(place, name)

    def strike() -> None:
        os.kill(os.getpid(), getattr(signal, signal_name))

    def begun(*given: Any, **named: Any) -> Any:
        threading.Timer(after_s, strike).start() if after_s else strike()
        return whole(*given, **named)

    setattr(place, name, begun)


def _files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
