"""Where two run folders differ: metrics.jsonl row by row, status.json, every ledger bit by bit, summary.csv.

Not compared: what the clock measures (`CLOCK_FIGURES`), status.json's sentences and times, and ledger metadata with a path.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CLOCK_FIGURES = (
    *("images_per_second", "data_wait", "mfu", "mfu_heads", "seconds", "device_seconds"),
    *("slowest_rank", "slowest_rank_seconds", "slowest_rank_data_wait"),
    *("wall_hours", "device_hours"),
)
STATUS_LEFT_OUT = ("reason", "warnings", "overhead")
"""Sentences of status.json, and what the clock measures there."""
ABSENT = "absent"


@dataclass(frozen=True)
class Difference:
    """One figure that is not the same in both runs; `place` says where in the file it stands."""

    place: str
    figure: str
    left: Any
    right: Any


@dataclass
class Section:
    """The comparison of one file: how many figures were compared, and which differ, in the file's order."""

    name: str
    num_compared: int = 0
    differences: list[Difference] = field(default_factory=list)

    def compare(self, place: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> None:
        """Compare figures by name; one that only one side has differs from `ABSENT`."""
        for name in [*left, *(name for name in right if name not in left)]:
            values = left.get(name, ABSENT), right.get(name, ABSENT)
            self.num_compared += 1
            if not is_same(*values):
                self.differences.append(Difference(place, name, *values))


def compare_folders(left: Path, right: Path) -> list[Section]:
    """Compare two run folders.

    Returns:
        One section a file, in the order in which a difference would show first: metrics, weights, ledgers, summary.
    """
    return [
        compare_metrics(left, right),
        compare_status(left, right),
        *compare_ledgers(left, right),
        compare_summaries(left, right),
    ]


def compare_metrics(left: Path, right: Path) -> Section:
    """Compare the rows of metrics.jsonl by kind and step, in the order in which they were written."""
    section = Section("metrics.jsonl")
    rows = [_metrics(folder) for folder in (left, right)]
    for place in _names(*rows):
        section.compare(place, *(each.get(place, {}) for each in rows))
    return section


def compare_status(left: Path, right: Path) -> Section:
    """Compare status.json: the weights' hashes and the figures at the end."""
    section = Section("status.json")
    section.compare("at the end", *(_flat(_json(folder / "status.json"), STATUS_LEFT_OUT) for folder in (left, right)))
    return section


def compare_summaries(left: Path, right: Path) -> Section:
    """Compare summary.csv row by row."""
    section = Section("summary.csv")
    tables = [_summary(folder) for folder in (left, right)]
    for place in _names(*tables):
        section.compare(place, *(table.get(place, {}) for table in tables))
    return section


def compare_ledgers(left: Path, right: Path) -> Iterator[Section]:
    """Compare every ledger file that one of the runs has."""
    files = [
        {str(path.relative_to(folder)): path for path in sorted(folder.glob("ledger/*/*.parquet"))}
        for folder in (left, right)
    ]
    for name in _names(*files):
        section = Section(name)
        if name in files[0] and name in files[1]:
            _compare_tables(section, *(pq.read_table(each[name]) for each in files))
        else:
            section.compare("file", *({"present": name in each} for each in files))
        yield section


def is_same(left: Any, right: Any) -> bool:
    """Whether two values are the same to the bit; NaN is the same as NaN, and 0.0 is not -0.0."""
    return type(left) is type(right) and repr(left) == repr(right)


def _compare_tables(section: Section, left: pa.Table, right: pa.Table) -> None:
    section.compare("metadata", _metadata(left.schema), _metadata(right.schema))
    section.compare("columns", _types(left.schema), _types(right.schema))
    section.compare("table", {"rows": left.num_rows}, {"rows": right.num_rows})
    if section.differences and left.num_rows != right.num_rows:
        return
    for name in left.schema.names:
        if name in right.schema.names and left.schema.field(name).type == right.schema.field(name).type:
            _compare_columns(section, name, left[name].combine_chunks(), right[name].combine_chunks())


def _compare_columns(section: Section, name: str, left: pa.Array, right: pa.Array) -> None:
    """Compare two columns of one type and length bit by bit, and note the first row that differs."""
    section.num_compared += len(left)
    row = first_different_row(left, right)
    if row is not None:
        section.differences.append(Difference(f"row {row}", name, left[row].as_py(), right[row].as_py()))


def first_different_row(left: pa.Array, right: pa.Array) -> int | None:
    """Return the first row in which two arrays of one type and length differ by a bit, or None."""
    if pa.types.is_list(left.type) or pa.types.is_large_list(left.type):
        return _first_different_list(left, right)
    bits = [_bits(array) for array in (left, right)]
    rows = np.flatnonzero((bits[0] != bits[1]).any(axis=1))
    return int(rows[0]) if len(rows) else None


def _first_different_list(left: pa.Array, right: pa.Array) -> int | None:
    offsets = [array.offsets.to_numpy() - array.offsets[0].as_py() for array in (left, right)]
    uneven = np.flatnonzero(np.diff(offsets[0]) != np.diff(offsets[1]))
    end = int(uneven[0]) if len(uneven) else len(left)
    num_values = offsets[0][end]
    value = first_different_row(left.flatten()[:num_values], right.flatten()[:num_values])
    if value is not None:
        return int(np.searchsorted(offsets[0], value, side="right")) - 1
    return end if len(uneven) else None


def _bits(array: pa.Array) -> np.ndarray:
    """Return the bytes of each number, one row a number; the last byte says whether it is missing."""
    missing = array.is_null().to_numpy(zero_copy_only=False)
    zero = pa.scalar(0, pa.int8()).cast(array.type)
    values = array.fill_null(zero).to_numpy(zero_copy_only=False)
    return np.column_stack([values.view(np.uint8).reshape(len(values), values.itemsize), missing])


def _metadata(schema: pa.Schema) -> dict[str, Any]:
    """Return the ledger's own metadata, but for what names a path."""
    facts = _flat({key.decode(): json.loads(value) for key, value in (schema.metadata or {}).items()})
    return {name: value for name, value in facts.items() if not (isinstance(value, str) and "/" in value)}


def _types(schema: pa.Schema) -> dict[str, str]:
    return {name: str(schema.field(name).type) for name in schema.names}


def _metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of metrics.jsonl by their place, such as "step 30 (epoch 0)" or "end of epoch 1"."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {_place(row): _flat(row, ("kind", *CLOCK_FIGURES)) for row in rows}


def _place(row: Mapping[str, Any]) -> str:
    return f"end of epoch {row['epoch']}" if row["kind"] == "epoch" else f"step {row['step']} (epoch {row['epoch']})"


def _summary(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "summary.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {f"epoch {row['epoch']}": _flat(row, CLOCK_FIGURES) for row in csv.DictReader(file)}


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _flat(facts: Mapping[str, Any], left_out: Iterable[str] = ()) -> dict[str, Any]:
    """Spread nested mappings and lists over dotted names: {"rla": [0.1, 0.2]} becomes rla.0 and rla.1."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if name in left_out:
            continue
        inner = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(inner, Mapping) and inner:
            flat |= {f"{name}.{key}": item for key, item in _flat({str(key): inner[key] for key in inner}).items()}
        else:
            flat[name] = value
    return flat


def _names(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Return all keys, those that only the right side has at the end."""
    return [*left, *(name for name in right if name not in left)]
