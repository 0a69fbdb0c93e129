"""The table of faults: run the test of every row of benchmarks/faults.yaml, and write what was seen into docs/faults.md.

python benchmarks/fault_table.py [--only WORD] [--timeout SECONDS]

Rows that are not run keep what was seen of them last, with its commit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "benchmarks" / "faults.yaml"
SEEN = ROOT / "benchmarks" / "results" / "faults.json"
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
    parser.add_argument("--timeout", type=float, default=900, help="seconds for a row (default: 900)")
    arguments = parser.parse_args()
    rows: list[dict[str, str]] = yaml.safe_load(ROWS.read_text())
    seen: dict[str, dict[str, Any]] = json.loads(SEEN.read_text()) if SEEN.exists() else {}
    for row in rows:
        if arguments.only in row["fault"] + row["test"]:
            seen[row["test"]] = run_row(row["test"], arguments.timeout)
            print(f"{seen[row['test']]['outcome']}: {row['fault']}", flush=True)
            SEEN.parent.mkdir(exist_ok=True)
            SEEN.write_text(json.dumps(seen, indent=1, sort_keys=True) + "\n")
            PAGE.write_text(page(rows, seen))
    outcomes = [seen.get(row["test"], {}).get("outcome") for row in rows]
    print(f"rows passed: {outcomes.count('as asked')} of {len(rows)}")
    return int(set(outcomes) != {"as asked"})


def run_row(test: str, timeout_s: float) -> dict[str, Any]:
    """Run one test in a process group of its own, which is killed after `timeout_s`; return what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        anything = "slow or not slow or slurm"
        command = [sys.executable, "-m", "pytest", "-q", "-m", anything, f"--junitxml={report}", test]
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return {"outcome": f"no end within {timeout_s:g} s", "commit": commit()}
        found = read_report(report) if report.exists() else {"outcome": "no such test"}
        return found | {"seconds": round(time.monotonic() - began), "commit": commit()}


def read_report(path: Path) -> dict[str, Any]:
    """Return the outcome and the figures of the test in a junit report."""
    case = ElementTree.parse(path).find(".//testcase")
    if case is None:
        return {"outcome": "no such test"}
    figures = {item.get("name"): item.get("value") for item in case.iter("property") if item.get("name") in FIGURES}
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            return figures | {"outcome": f"{kind}: {(found.get('message') or '').splitlines()[0][:120]}"}
    return figures | {"outcome": "as asked"}


def page(rows: list[dict[str, str]], seen: dict[str, dict[str, Any]]) -> str:
    """Return the page of all rows."""
    lines = []
    for row in rows:
        found = seen.get(row["test"], {"outcome": "not run"})
        cells = [row["fault"], row["asked"], found["outcome"], *(str(found.get(name, "")) for name in FIGURES)]
        lines.append(" | ".join(["", *(cell.replace("|", "/") for cell in cells), found.get("commit", ""), ""]).strip())
    passed = sum(seen.get(row["test"], {}).get("outcome") == "as asked" for row in rows)
    return HEAD + "\n".join(lines) + f"\n\n{passed} of {len(rows)} rows as asked.\n"


def commit() -> str:
    """Return the short hash of the commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
