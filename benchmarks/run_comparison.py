"""Whether a run that was killed and started again holds what an undisturbed one holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from run_differences import CLOCK_FIGURES, compare_folders


def differences(run: Path, undisturbed: Path) -> list[str]:
    """Return in what a run is not the undisturbed one: every file of the record, and what is left of writes.

    Weights' hashes and figures of status.json, all ledgers bit by bit, metrics.jsonl line by line in its order, summary.csv,
    and names and content of the checkpoints' files. Not the clock's columns (run_differences.CLOCK_FIGURES).
    """
    found = [
        f"{section.name}, {each.place}, {each.figure}: {each.left} instead of {each.right}"
        for section in compare_folders(run, undisturbed)
        for each in section.differences
    ]
    ours, theirs = ([_without(row, CLOCK_FIGURES) for row in _lines(each)] for each in (run, undisturbed))
    if ours != theirs:
        found.append(f"metrics.jsonl: {len(ours)} lines instead of {len(theirs)}, or in another order")
    names = [{str(path.relative_to(each)) for path in each.rglob("*")} for each in (run, undisturbed)]
    odd = sorted(name for name in names[0] ^ names[1] if not name.startswith("tensorboard/"))
    found += [f"{name}: {'left' if name in names[0] else 'missing'}" for name in odd]
    found += [f"{name}: other content" for name in _differing_checkpoints(run, undisturbed)]
    return found


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _without(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    return {name: repr(value) for name, value in row.items() if name not in names}


def _differing_checkpoints(run: Path, undisturbed: Path) -> Iterator[str]:
    """Yield the checkpoints that both have and whose tensors are not the same to the bit."""
    for folder in sorted((undisturbed / "checkpoints").glob("step=*")):
        ours = run / "checkpoints" / folder.name
        names = [path.name for path in folder.glob("*.distcp")]
        if ours.exists() and any((ours / name).read_bytes() != (folder / name).read_bytes() for name in names):
            yield folder.name
