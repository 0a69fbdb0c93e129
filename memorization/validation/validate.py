"""Table of known answers: `python -m rlpheads.memorization.validation.validate`; exits with 1 if any is outside its tolerance.

Every measure reproduces numbers that are known beforehand: by derivation, by enumeration, or from a
simulation in which the truth is set by hand. To add an answer, write a function that returns `KnownAnswer` rows and add it to
`CHECKS` (or pass it to `main`, as a room does that this one may not import).
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from rlpheads.memorization.validation import (
    closed_form_answers,
    coverage,
    excess_coverage,
    membership_answers,
    simulated_answers,
    trained_answers,
)
from rlpheads.memorization.validation.known_answer import Check, KnownAnswer

CHECKS: tuple[Check, ...] = (
    *closed_form_answers.CHECKS,
    *simulated_answers.CHECKS,
    *trained_answers.CHECKS,
    *membership_answers.CHECKS,
    coverage.interval_coverage,
    excess_coverage.excess_coverage,
)


def main(checks: Sequence[Check] = CHECKS, console: Console | None = None) -> int:
    """Run the checks, print the table, and return the exit status: 0 when every answer is within its tolerance."""
    console = console or Console()
    started = time.perf_counter()
    results = [(title(check), list(check())) for check in checks]
    console.print(render(results))
    answers = [answer for _, rows in results for answer in rows]
    num_off = sum(not answer.passed for answer in answers)
    console.print(
        f"{len(answers) - num_off} of {len(answers)} known answers within tolerance, {time.perf_counter() - started:.0f} s"
    )
    return int(num_off > 0 or not answers)


def title(check: Check) -> str:
    """First line of a check's docstring."""
    return (inspect.getdoc(check) or "Untitled").splitlines()[0].rstrip(".")


def render(results: Sequence[tuple[str, Sequence[KnownAnswer]]]) -> Table:
    """Lay out the groups of answers as a table with one section each."""
    table = Table(title="Known answers", title_justify="left")
    table.add_column("answer", overflow="fold")
    for heading in ("expected", "obtained", "tolerance"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name, rows in results:
        table.add_section()
        table.add_row(f"[bold]{name}[/bold]")
        for answer in rows:
            bound = "≥ " if answer.at_least else ""
            verdict = "[green]ok[/green]" if answer.passed else "[red]OFF[/red]"
            table.add_row(
                answer.name,
                f"{bound}{answer.expected:.6g}",
                f"{answer.obtained:.6g}",
                f"{answer.tolerance:.2g}",
                verdict,
            )
    return table


if __name__ == "__main__":
    torch.set_num_threads(1)  # small matrices: more threads only wait for each other
    sys.exit(main())
