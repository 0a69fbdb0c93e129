"""Figures as rows of one shape, whatever they are of: epoch, step, phase, tap, heads, draw, figure, value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from rlpheads.memorization.quantiles import MARGIN_LEVELS
from rlpheads.memorization.records.ledger_file import LedgerTable


class FigureRow(NamedTuple):
    """One number of a run.

    Attributes:
        epoch: from 0.
        step: optimizer steps taken.
        phase: what was looked at: "running" (augmented training images, weights moving), "clean" (training images as they
            are, weights at rest), "heldout", "heldout_ema" (held-out images, averaged weights); None for what is of none.
        tap: name of the tap; None for figures of the classes and of the run.
        heads: whose random labels: "own", "audit", or "refit" (refitted to fresh labels); None where none are meant.
        draw: number of the labels' draw, audit draws behind the heads' own; None for an average over draws.
        figure: its name.
        value: the number; accuracies in [0, 1], losses in nats.
    """

    epoch: int
    step: int
    phase: str | None
    tap: str | None
    heads: str | None
    draw: int | None
    figure: str
    value: float | None


FIGURE_SCHEMA = pa.schema(
    [
        *(("epoch", pa.int64()), ("step", pa.int64()), ("phase", pa.string()), ("tap", pa.string())),
        *(("heads", pa.string()), ("draw", pa.int64()), ("figure", pa.string()), ("value", pa.float64())),
    ]
)


def figure_table(rows: Iterable[FigureRow]) -> pa.Table:
    """Return rows as a table."""
    columns = zip(*rows, strict=True)
    return pa.table(dict(zip(FIGURE_SCHEMA.names, columns, strict=True)) or _NO_ROWS, schema=FIGURE_SCHEMA)


def epoch_rows(lines: Iterable[Mapping[str, Any]], taps: Sequence[str]) -> Iterator[FigureRow]:
    """Yield the figures of the epoch lines of metrics.jsonl, averages over draws.

    Args:
        lines: the epoch lines.
        taps: names of the taps, in the order of the lists; those behind them are numbered.
    """
    for line in lines:
        for name, value in line.items():
            if name in ("kind", "epoch", "step") or isinstance(value, str):
                continue
            if isinstance(value, list):
                phase, heads, figure = _of_tap(name)
                names = [*taps, *map(str, range(len(taps), len(value)))]
                named = zip(names, value, strict=False)
                yield from (
                    FigureRow(line["epoch"], line["step"], phase, tap, heads, None, figure, item) for tap, item in named
                )
            else:
                phase, figure = _of_classes(name)
                number = None if value is None else float(value)
                yield FigureRow(line["epoch"], line["step"], phase, None, None, None, figure, number)


def ledger_rows(table: LedgerTable) -> Iterator[FigureRow]:
    """Yield what a ledger says of every tap and draw: accuracy, bits and quantiles of the margin of the samples seen."""
    facts, seen_N = table.metadata, table.seen
    if not seen_N.any():
        return
    kinds = {draw: name for name, draws in facts.draws.items() for draw in range(draws.start, draws.stop)}
    for position, tap in enumerate(facts.taps):
        for draw in range(facts.num_draws):
            bits = float(table.bits[position, draw, seen_N].sum(dtype=np.float64))
            margins = np.quantile(table.margin[position, draw, seen_N], list(MARGIN_LEVELS.values()))
            figures = {"rla": float(table.hit[position, draw, seen_N].mean()), "bits": bits}
            figures |= {"bits_per_sample": bits / int(seen_N.sum())}
            figures |= {f"margin_{name}": float(value) for name, value in zip(MARGIN_LEVELS, margins, strict=True)}
            place = (facts.epoch, facts.step, facts.phase, str(tap), kinds[draw], draw)
            yield from (FigureRow(*place, name, value) for name, value in figures.items())


_NO_ROWS: dict[str, list[Any]] = {name: [] for name in FIGURE_SCHEMA.names}
_PASSES = {"eval_ema_": "heldout_ema", "train_": "running", "eval_": "heldout", "clean_": "clean"}
"""How names of the classes' figures begin, and the phase that is meant."""
_TAP_PHASES = ("running", "clean", "heldout")
_REFIT = {"fresh_refit": "rla", "fresh_refit_half_width": "rla_half_width"}


def _of_tap(name: str) -> tuple[str | None, str | None, str]:
    """Return phase, heads and figure of a name such as audit_rla_clean."""
    stem, _, phase = name.rpartition("_")
    if phase not in _TAP_PHASES:
        return None, None, name
    if stem in _REFIT:
        return phase, "refit", _REFIT[stem]
    return (phase, "audit", stem.removeprefix("audit_")) if stem.startswith("audit_") else (phase, "own", stem)


def _of_classes(name: str) -> tuple[str | None, str]:
    """Return phase and figure of a name such as eval_top1."""
    prefix = next((each for each in _PASSES if name.startswith(each)), None)
    return (None, name) if prefix is None else (_PASSES[prefix], name.removeprefix(prefix))
