"""Signals in every phase of a run, at three successive starts, and whether the run ends as undisturbed.

python benchmarks/phase_kills.py --folder build/kills [--only WORD] [--ranks 2] [--minutes 60]

A case is a phase and a signal. A rank (the last) sends itself the signal inside the phase, at a moment of its own, at each of
the first three starts that come to it; then the same command goes on until the run is done, and everything that it holds is
compared with an undisturbed run's. Ranks are forked off a process that has imported everything. Phases of `rlpheads audit` are
met on copies of a finished run of one rank, whose files are compared. What was seen is in FOLDER/phases/cases.jsonl; the same
command goes on behind it, and prints the table. Exit code: 0 where all cases ended as undisturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from audit_kills import AUDIT_PHASES, AuditPhase, run_audit_case
from forked_run import ForkedRun, import_once
from killed_runs import Case, Way, clear, status_of
from run_comparison import differences
from started_run import wait

SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT", "SIGKILL")
NUM_SIGNALS = 3
"""Starts of a case that meet one."""
MOST_STARTS = 8


@dataclass(frozen=True)
class Phase:
    """A phase of a run, and where it is met.

    Attributes:
        name: shown.
        entered: what the run's progress calls it.
        time: the how manyeth of its kind in a start is met, from 1.
        after_s: seconds from its beginning to the signal, for the first start; the second waits twice as long, and so on.
        flags: settings that the run needs for it.
    """

    name: str
    entered: str
    time: int = 1
    after_s: float = 0.0
    flags: tuple[str, ...] = ()


COMPILED = ("--runtime.compile", "true")
PHASES = (
    Phase("first step", "training step"),
    Phase("warm-up", "training step", time=2, flags=("--schedule.warmup_epochs", "1")),
    Phase("step", "training step", time=3, after_s=0.005),
    Phase("evaluation", "held-out evaluation, first batch", after_s=0.01),
    Phase("clean pass", "clean evaluation, first batch", after_s=0.01),
    Phase("refit of the clean pass", "refit on fresh labels", after_s=0.005),
    Phase(
        "audit heads' evaluation",
        "held-out evaluation",
        flags=("--regularizer.kind", "uniform", "--regularizer.factor", "1"),
    ),
    Phase("save", "checkpoint", after_s=0.002),
    Phase("end of the epoch", "end of the epoch", after_s=0.005),
    Phase("figures", "last figures", after_s=0.1),
    Phase("compilation", "training step", after_s=2.0, flags=COMPILED),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases that are left; return 1 where one did not end as undisturbed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/kills"), help="of all runs, and of what was seen")
    parser.add_argument("--only", default="", help="run the phases whose name has this word")
    parser.add_argument("--ranks", type=int, default=1, choices=(1, 2), help="of each run (default: 1)")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no case after so many (default: no limit)"
    )
    arguments = parser.parse_args(argv)
    folder = (arguments.folder / "phases").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "cases.jsonl"
    cases = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    known = {(case["phase"], case["signal"], case["ranks"]) for case in cases}
    import_once()
    began = time.monotonic()
    for phase in (*PHASES, *(AUDIT_PHASES if arguments.ranks == 1 else ())):
        for name in SIGNALS:
            is_late = time.monotonic() - began > 60 * arguments.minutes
            if arguments.only not in phase.name or (phase.name, name, arguments.ranks) in known or is_late:
                continue
            if isinstance(phase, AuditPhase):
                cases.append(run_audit_case(folder / "runs", undisturbed(folder, (), 1), phase, name))
            else:
                cases.append(run_case(folder, phase, name, arguments.ranks))
            with record.open("a") as file:
                file.write(json.dumps(cases[-1]) + "\n")
            print(cases[-1], flush=True)
    print("\n".join(table(cases)))
    return int(any(case["outcome"] != "equal" for case in cases))


def forked_case(folder: Path, flags: Sequence[str], num_ranks: int) -> Case:
    """Return the settings of a run of forks."""
    return Case(folder, "plain", Way("forked", num_ranks, is_whole=False), tuple(flags))


def undisturbed(folder: Path, flags: Sequence[str], num_ranks: int) -> Path:
    """Return the folder of the run that others with these settings are compared with; it is made where there is none."""
    case = forked_case(folder, flags, num_ranks)
    name = f"undisturbed-{num_ranks}-{'-'.join(flags).replace('.', '_').strip('-')}"
    if status_of(case.run_folder(name)) != "done":
        clear(case, name)
        wait(case.way.start(case.arguments(name), case.log(name)))
    return case.run_folder(name)


def run_case(folder: Path, phase: Phase, signal_name: str, num_ranks: int) -> dict[str, Any]:
    """Run one case to its end and return what was seen."""
    case = forked_case(folder, phase.flags, num_ranks)
    whole = undisturbed(folder, phase.flags, num_ranks)
    name = f"{phase.name}-{signal_name}-{num_ranks}".replace(" ", "-")
    clear(case, name)
    met = 0
    codes: list[int | str | None] = []
    while len(codes) < MOST_STARTS:
        meet = (
            partial(send_itself, phase, signal_name, num_ranks - 1, phase.after_s * (met + 1))
            if met < NUM_SIGNALS
            else None
        )
        started = ForkedRun(case.arguments(name), num_ranks, case.log(name), meet)
        in_time = wait(started)
        codes.append(started.code if in_time else "hang")
        mark = case.run_folder(f"{name}{MET}")
        met += mark.exists()
        mark.unlink(missing_ok=True)
        if started.code == 0 and status_of(case.run_folder(name)) == "done":
            break
    found = differences(case.run_folder(name), whole)
    if not found:
        clear(case, name)
    outcome = "; ".join(found[:5]) or "equal"
    return {
        "phase": phase.name,
        "signal": signal_name,
        "ranks": num_ranks,
        "met": met,
        "codes": codes,
        "outcome": outcome,
    }


MET = ".met"
"""Ending of the file that says that a start has met its signal."""


def send_itself(phase: Phase, signal_name: str, victim: int, after_s: float, rank: int) -> None:
    """Have this process get a signal inside a phase, if it is the victim."""
    if rank != victim:
        return
    from rlpheads.engine.distributed.progress import Progress

    enter, begun = Progress.enter, []

    def entered(self: Progress, name: str, step: int | None = None) -> None:
        enter(self, name, step)
        begun.extend([name] * (name == phase.entered))
        if name == phase.entered and len(begun) == phase.time:
            threading.Timer(after_s, strike).start() if after_s else strike()

    def strike() -> None:
        place = dict(zip(sys.argv, sys.argv[1:], strict=False))
        (Path(place["--run.dir"]) / f"{place['--run.name']}{MET}").touch()
        os.kill(os.getpid(), getattr(signal, signal_name))

    Progress.enter = entered  # type: ignore[method-assign, assignment]


def table(cases: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table of what was seen: a row a phase, a column a signal."""
    yield f"| phase | ranks | {' | '.join(SIGNALS)} |"
    yield f"|---|---|{'---|' * len(SIGNALS)}"
    for phase, ranks in dict.fromkeys((case["phase"], case["ranks"]) for case in cases):
        found = {case["signal"]: case for case in cases if (case["phase"], case["ranks"]) == (phase, ranks)}
        cells = [f"{found[name]['outcome']}, {found[name]['met']} met" if name in found else "" for name in SIGNALS]
        yield f"| {phase} | {ranks} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
