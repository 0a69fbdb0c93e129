"""summary.csv: the epochs of a run as one table, narrow enough to be read, or with every figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlpheads.engine.config.learning import HeadsConfig
from rlpheads.engine.runs.folder import RunFolder, write_atomically

SUMMARY_FILE = "summary.csv"
TIMM_COLUMNS = ("epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr")
_NARROW = (*TIMM_COLUMNS, "train_top1", "eval_ece", "eval_ema_top1", "clean_top1", "regularizer_factor")
_BY_TAP = ("rla_clean", "audit_rla_clean", "fresh_refit_clean", "excess_clean", "rla_heldout")
_TIMES = ("images_per_second", "wall_hours", "device_hours")


def write_summary(folder: RunFolder, heads: HeadsConfig, *, wide: bool = False) -> None:
    """Derive summary.csv of a run folder from the epoch lines of its metrics.jsonl; `summary_text` says what the rest is."""
    path = folder.path / SUMMARY_FILE
    header = path.read_text().partition("\n")[0] if path.is_file() else ""
    write_atomically(path, summary_text(folder.metrics("epoch"), heads, header, wide=wide))


def summary_text(
    rows: Sequence[Mapping[str, Any]], heads: HeadsConfig, existing_header: str = "", *, wide: bool = False
) -> str:
    """Return the file's text: timm's columns first, accuracies in [0, 1], lists over numbered columns.

    Args:
        rows: the epoch lines of metrics.jsonl.
        heads: the run's settings of its heads.
        existing_header: first line of the file that is there. One of before there were narrow files stays as wide as it is.
        wide: every figure of the lines.
    """
    columns = wide_columns if wide or _is_wide(existing_header) else narrow_columns
    flat = [_spread_lists(row) for row in with_derived(rows, heads)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(flat), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def with_derived(rows: Iterable[Mapping[str, Any]], heads: HeadsConfig) -> list[dict[str, Any]]:
    """Return epoch lines with what follows from them.

    `excess_clean`: accuracy on clean training images at each tap, of the heads that tell what is remembered
    (`HeadsConfig.telling`), less that of heads refitted to fresh labels. `wall_hours` and `device_hours`: sums over the epochs
    so far, of the processes that trained them.
    """
    derived, seconds, device_seconds = [], 0.0, 0.0
    for row in rows:
        added: dict[str, Any] = {}
        measured, refit = row.get(telling_figure(row, heads)), row.get("fresh_refit_clean")
        if measured is not None and refit is not None:
            added["excess_clean"] = [
                None if None in pair else pair[0] - pair[1] for pair in zip(measured, refit, strict=False)
            ]
        if "seconds" in row:
            seconds, device_seconds = seconds + row["seconds"], device_seconds + row["device_seconds"]
            added |= {"wall_hours": seconds / 3600, "device_hours": device_seconds / 3600}
        derived.append({**row, **added})
    return derived


def telling_figure(row: Mapping[str, Any], heads: HeadsConfig) -> str:
    """Return the name of an epoch line's accuracies on clean images, of the heads that tell what is remembered."""
    group = heads.telling(audited="audit_rla_clean" in row)
    return "audit_rla_clean" if group == "audit" else "rla_clean"


def narrow_columns(flat: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return timm's columns, those of the classes, of the random labels by tap, and the times, as far as they are there."""
    there = {name for row in flat for name in row}
    by_tap = [name for stem in _BY_TAP for name in _numbered(stem, there)]
    return [*TIMM_COLUMNS, *(name for name in [*_NARROW[len(TIMM_COLUMNS) :], *by_tap, *_TIMES] if name in there)]


def wide_columns(flat: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return timm's columns, and all others in the order of the alphabet."""
    return [*TIMM_COLUMNS, *sorted({name for row in flat for name in row} - {*TIMM_COLUMNS, "kind"})]


def _is_wide(header: str) -> bool:
    return any(name.startswith(("bits_", "margin_", "step")) for name in header.strip().split(","))


def _numbered(stem: str, there: Iterable[str]) -> list[str]:
    numbered = (name for name in there if name.rpartition("_")[0] == stem and name.rpartition("_")[2].isdecimal())
    return sorted(numbered, key=lambda name: int(name.rpartition("_")[2]))


def _spread_lists(row: Mapping[str, Any]) -> dict[str, Any]:
    """Spread lists over numbered columns: {"rla_clean": [a, b]} becomes rla_clean_0, rla_clean_1."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        items: Iterable[tuple[str, Any]] = [(name, value)]
        if isinstance(value, list):
            items = [(f"{name}_{position}", item) for position, item in enumerate(value)]
        flat.update(items)
    return flat
