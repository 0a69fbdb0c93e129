"""Random kills: runs on digits are killed and stopped at random moments, and started again by the same command until done.

python benchmarks/random_kills.py --folder build/kills --count 200 [--seed 1] [--minutes 60]

A trial is a run of one or two ranks that meets some points: SIGKILL, SIGTERM or SIGHUP, to a rank, all ranks or the launcher,
at a moment drawn from the whole of what is left of it. Half of the points are met by runs whose every start is a whole command
(python, torchrun, torchrun and rlpheads train with --max-restarts), half by ranks forked off a process that has imported all.
In the end everything that the run holds is compared with an undisturbed run's of as many ranks: see `differences`.

What was seen is in FOLDER/seed=N/trials.jsonl, a line a trial; the same command goes on behind it. Trial i of a seed is always
the same but for where its moments meet the run. Exit code: 0 where all trials ended as undisturbed.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from forked_run import import_once
from killed_runs import RECIPES, Case, Way, clear, last_step, status_of
from run_comparison import differences
from started_run import StartedRun, send, wait

SIGNALS = ("SIGKILL", "SIGKILL", "SIGTERM", "SIGHUP")
"""Drawn evenly."""
MOST_POINTS = {False: 12, True: 8}
"""Of a trial, by whether its starts are whole commands."""
MOST_RESTARTS = 3 * MOST_POINTS[True]
"""Of a launcher: one whose ranks are stopped counts as failed, too."""
SPARE_STARTS = 4
"""Starts beyond one a point, after which a run that is not done counts as lost."""
FORKED = (Way("forked", 1, is_whole=False), Way("forked", 2, is_whole=False))
WHOLE = (
    Way("python", 1),
    Way("torchrun", 2),
    Way("torchrun restarts", 2, restarts=MOST_RESTARTS),
    Way("rlpheads restarts", 2, restarts=MOST_RESTARTS),
)
COMMON = 11
"""Trials of each other recipe for one with a loader worker, whose start takes longest."""


@dataclass(frozen=True)
class Point:
    """One signal.

    Attributes:
        signal: its name.
        victim: "rank 0", "rank 1", "all ranks" or "launcher"; without a launcher that is all ranks.
        fraction: of what is left of the run, at which it comes.
    """

    signal: str
    victim: str
    fraction: float


@dataclass(frozen=True)
class Pace:
    """Seconds of an undisturbed run, to its first recorded step and to its end, and its number of steps."""

    first_s: float
    whole_s: float
    steps: int

    def left_s(self, step: int) -> float:
        """Return how long a start from a step takes."""
        return self.first_s + (self.whole_s - self.first_s) * (1 - step / self.steps)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trials that are left; return 1 where one did not end as undisturbed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/kills"), help="of all runs, and of what was seen")
    parser.add_argument("--count", type=int, default=200, help="signals to be met in all (default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="of the trials (default: 1)")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no trial after so many (default: no limit)"
    )
    arguments = parser.parse_args(argv)
    folder = (arguments.folder / f"seed={arguments.seed}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "trials.jsonl"
    trials = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    import_once()
    began = time.monotonic()
    while (met := sum(len(trial["met"]) for trial in trials)) < arguments.count:
        if time.monotonic() - began > 60 * arguments.minutes:
            break
        trial = run_trial(folder, arguments.seed, len(trials), trials)
        trials.append(trial)
        with record.open("a") as file:
            file.write(json.dumps(trial) + "\n")
        met += len(trial["met"])
        print(
            f"{met} of {arguments.count} points: trial {trial['trial']}, {trial['way']} {trial['ranks']} {trial['recipe']}, "
            f"{len(trial['met'])} points, {trial['starts']} starts: {trial['outcome']}",
            flush=True,
        )
    print(summary(arguments.seed, trials))
    return int(any(trial["outcome"] != "equal" for trial in trials))


def run_trial(folder: Path, seed: int, number: int, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Run one trial to its end and return what was seen; its files stay where it is not as undisturbed."""
    drawn = random.Random(f"{seed}/{number}")
    recipe = drawn.choices(list(RECIPES), [COMMON if recipe != "worker" else 1 for recipe in RECIPES])[0]
    whole, forked = drawn.choice(WHOLE), drawn.choice(FORKED)
    met = {
        is_whole: sum(len(trial["met"]) for trial in before if trial["whole"] == is_whole) for is_whole in (False, True)
    }
    case = Case(folder, recipe, whole if met[True] <= met[False] else forked)
    points = [draw_point(drawn) for _ in range(drawn.randint(2, MOST_POINTS[case.way.is_whole]))]
    pace = undisturbed(case)
    name = f"trial-{number:04d}"
    clear(case, name)
    seen, starts, outcome = disturb(case, name, points, pace)
    if outcome == "done":
        found = differences(case.run_folder(name), case.run_folder(undisturbed_name(case)))
        outcome = "; ".join(found[:5]) or "equal"
    if outcome == "equal":
        clear(case, name)
    facts = {
        "trial": number,
        "way": case.way.name,
        "ranks": case.way.num_ranks,
        "recipe": recipe,
        "whole": case.way.is_whole,
    }
    return facts | {"met": seen, "starts": starts, "outcome": outcome}


def draw_point(drawn: random.Random) -> Point:
    """Draw a point."""
    name = drawn.choice(SIGNALS)
    return Point(name, drawn.choice(("rank 0", "rank 1", "all ranks", "launcher")), round(drawn.random() ** 1.5, 4))


def disturb(case: Case, name: str, points: Sequence[Point], pace: Pace) -> tuple[list[dict[str, Any]], int, str]:
    """Start a run until it is done, and let it meet the points; return those it met, the number of starts, and how it ended."""
    left, seen, run = list(points), [], case.run_folder(name)
    for starts in range(1, len(points) + SPARE_STARTS + 1):
        started = case.way.start(case.arguments(name), case.log(name))
        while left and not started.has_ended():
            at = time.monotonic() + left[0].fraction * pace.left_s(last_step(run))
            wait(started, partial(is_past, at))
            if send(getattr(signal, left[0].signal), victims(started, left[0].victim)):
                seen.append(asdict(left.pop(0)) | {"start": starts, "behind_step": last_step(run)})
            elif not started.has_ended():
                time.sleep(0.2)  # the launcher is between two starts of its ranks
        if not wait(started):
            return seen, starts, "hang"
        if started.code == 0 and status_of(run) == "done":
            return seen, starts, "done"
    return seen, starts, f"not done after {starts} starts: exit code {started.code}, status {status_of(run)}"


def is_past(moment: float) -> bool:
    """Return whether a moment of the monotonic clock has come."""
    return time.monotonic() >= moment


def victims(started: StartedRun, wanted: str) -> list[int]:
    """Return the processes that a signal goes to."""
    ranks = started.ranks()
    if wanted == "launcher" and started.launcher is not None:
        return [started.launcher]
    if wanted.startswith("rank") and ranks:
        return [ranks.get(int(wanted.split()[1]), min(ranks.values()))]
    return list(ranks.values())


def undisturbed_name(case: Case) -> str:
    """Return the name of the run that a case is compared with: the same however it was started."""
    return f"undisturbed-{case.recipe}-{case.way.num_ranks}"


def undisturbed(case: Case) -> Pace:
    """Make the run that a case is compared with, where there is none, and return how fast its way of starting is.

    Raises:
        RuntimeError: an undisturbed run does not end, or one that is started by a whole command ends elsewhere.
    """
    whole = undisturbed_name(case)
    paces = case.folder / "paces.json"
    known = json.loads(paces.read_text()) if paces.exists() else {}
    for way in [next(way for way in FORKED if way.num_ranks == case.way.num_ranks), case.way]:
        key = f"{'whole' if way.is_whole else 'forked'}, {way.num_ranks} ranks"
        if key in known and (way.is_whole or status_of(case.run_folder(whole)) == "done"):
            continue
        name = f"{whole}-{way.name.replace(' ', '-')}" if way.is_whole else whole
        pace = timed(replace(case, way=way), name)
        if way.is_whole and (found := differences(case.run_folder(name), case.run_folder(whole))):
            raise RuntimeError(f"started as {way.name}, it ends elsewhere: {found[0]}")
        known[key] = asdict(pace)
        paces.write_text(json.dumps(known, indent=1))
    return Pace(**known[key])


def timed(case: Case, name: str) -> Pace:
    """Let a run go to its end, and return how fast it was.

    Raises:
        RuntimeError: it does not end.
    """
    clear(case, name)
    run, began = case.run_folder(name), time.monotonic()
    started = case.way.start(case.arguments(name), case.log(name))
    wait(started, lambda: last_step(run) > 0)
    first_s = time.monotonic() - began
    if not wait(started) or status_of(run) != "done":
        raise RuntimeError(f"undisturbed, and not done: see {case.log(name)}")
    return Pace(first_s, time.monotonic() - began, last_step(run))


def summary(seed: int, trials: Sequence[dict[str, Any]]) -> str:
    """Return what was met and how it ended."""
    points = [point | {"way": trial["way"]} for trial in trials for point in trial["met"]]
    outcomes = Counter("equal" if trial["outcome"] == "equal" else "not equal" for trial in trials)
    whole = sum(len(trial["met"]) for trial in trials if trial["whole"])
    lines = [f"seed {seed}: {len(points)} points ({whole} of whole commands) in {len(trials)} runs; {dict(outcomes)}"]
    for what in ("signal", "victim", "way"):
        counts = Counter(point[what] for point in points).most_common()
        lines += [f"by {what}: {', '.join(f'{name} {count}' for name, count in counts)}"]
    lines += [f"trial {trial['trial']}: {trial['outcome']}" for trial in trials if trial["outcome"] != "equal"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
