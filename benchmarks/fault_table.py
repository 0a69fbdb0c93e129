"""The table of faults: run the test of every row of benchmarks/faults.yaml, and write what was seen into docs/faults.md.

python benchmarks/fault_table.py [--only WORD] [--missing] [--timeout SECONDS] [--page]

Rows that are not run keep what was seen of them last, with its commit. The tests of a file that follow each other in the list
are run by one pytest. Behind the rows the page shows what random_kills.py and phase_kills.py saw: benchmarks/results/kills/.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import phase_kills
import random_kills
import yaml

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "benchmarks" / "faults.yaml"
SEEN = ROOT / "benchmarks" / "results" / "faults.json"
KILLS = ROOT / "benchmarks" / "results" / "kills"
PAGE = ROOT / "docs" / "faults.md"
FIGURES = ("seconds_to_detect", "seconds_to_recover", "samples_lost")
HEAD = """\
# Faults

What was done to a run, what is asked of it, and what was seen: `make faults` runs the test of each row of
[benchmarks/faults.yaml](../benchmarks/faults.yaml) and writes this page. Seconds are of two cores that others used, too.

| fault | asked | seen | to detect, s | to recover, s | samples lost | commit |
|---|---|---|---|---|---|---|
"""


def main() -> int:
    """Run the rows and write the page; return 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the rows whose fault or test has this word")
    parser.add_argument("--missing", action="store_true", help="run the rows that were not seen as asked yet")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for a row (default: 900)")
    parser.add_argument("--page", action="store_true", help="run none, write the page from what was seen")
    arguments = parser.parse_args()
    rows: list[dict[str, str]] = yaml.safe_load(ROWS.read_text())
    tests = {row["test"] for row in rows}
    before: dict[str, dict[str, Any]] = json.loads(SEEN.read_text()) if SEEN.exists() else {}
    seen = {test: found for test, found in before.items() if test in tests}  # not of tests that are gone or renamed
    wanted = [
        row["test"]
        for row in rows
        if arguments.only in row["fault"] + row["test"]
        and not (arguments.missing and seen.get(row["test"], {}).get("outcome") == "as asked")
    ]
    for _, together in groupby([] if arguments.page else wanted, lambda test: test.partition("::")[0]):
        found = run_rows(list(together), arguments.timeout)
        seen |= found
        print("\n".join(f"{each['outcome']}: {test}" for test, each in found.items()), flush=True)
        SEEN.write_text(json.dumps(seen, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(rows, seen))
    outcomes = [seen.get(row["test"], {}).get("outcome") for row in rows]
    print(f"rows passed: {outcomes.count('as asked')} of {len(rows)}")
    return int(set(outcomes) != {"as asked"})


def run_rows(tests: list[str], timeout_s: float) -> dict[str, dict[str, Any]]:
    """Run tests of one file in a process group of their own, which is killed after `timeout_s` each; return what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-m", "slow or not slow or slurm", f"--junitxml={report}", "-o", "junit_family=xunit1"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout_s * len(tests))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return {test: {"outcome": f"no end within {timeout_s:g} s", "commit": commit()} for test in tests}
        found = read_report(report) if report.exists() else {}
        return {test: found.get(test, {"outcome": "no such test"}) | {"commit": commit()} for test in tests}


def read_report(path: Path) -> dict[str, dict[str, Any]]:
    """Return outcome, duration and figures of each test in a junit report."""
    seen: dict[str, dict[str, Any]] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        figures: dict[str, Any] = {
            str(item.get("name")): item.get("value") for item in case.iter("property") if item.get("name") in FIGURES
        }
        seen[f"{case.get('file')}::{case.get('name')}"] = figures | {
            "outcome": _outcome(case),
            "seconds": round(float(case.get("time", 0))),
        }
    return seen


def _outcome(case: ElementTree.Element) -> str:
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            return f"{kind}: {(found.get('message') or '').splitlines()[0][:120]}"
    return "as asked"


def page(rows: list[dict[str, str]], seen: dict[str, dict[str, Any]]) -> str:
    """Return the page of all rows."""
    lines = []
    for row in rows:
        found = seen.get(row["test"], {"outcome": "not run"})
        cells = [row["fault"], row["asked"], found["outcome"], *(str(found.get(name, "")) for name in FIGURES)]
        lines.append(" | ".join(["", *(cell.replace("|", "/") for cell in cells), found.get("commit", ""), ""]).strip())
    passed = sum(seen.get(row["test"], {}).get("outcome") == "as asked" for row in rows)
    return HEAD + "\n".join(lines) + f"\n\n{passed} of {len(rows)} rows as asked.\n" + kills()


def kills() -> str:
    """Return what the programs saw that kill runs, as far as their records are committed."""
    lines = []
    for path in sorted(KILLS.glob("trials.seed=*.jsonl")):
        told = random_kills.summary(int(path.stem.removeprefix("trials.seed=")), records(path))
        lines += [
            "",
            "## Random kills",
            "",
            random_kills.__doc__.partition("\n\n")[2].partition("\n\n")[2],
            "",
            "```",
            told,
            "```",
        ]
    for path in sorted(KILLS.glob("cases.jsonl")):
        lines += [
            "",
            "## Signals in every phase",
            "",
            phase_kills.__doc__.partition("\n\n")[2].partition("\n\n")[2],
            "",
        ]
        lines += phase_kills.table(records(path))
    return "\n".join([*lines, ""]) if lines else ""


def records(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a record."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def commit() -> str:
    """Return the short hash of the commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
