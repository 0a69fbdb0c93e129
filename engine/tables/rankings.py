"""Samples ranked by one measure, with how reliable that ranking is; a ranking of chance is called what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlpheads.engine.config.errors import nearest
from rlpheads.engine.runs.opened_run import RunError
from rlpheads.engine.tables.sample_table import class_columns, list_ledgers, named_rows
from rlpheads.memorization.measures.reliability import Reliability, mean_reliability, rank_correlation, stepped_up
from rlpheads.memorization.measures.sample_dynamics import (
    dataset_map,
    first_learned_epoch,
    forgetting_events,
    learned_for_good_epoch,
)
from rlpheads.memorization.measures.sample_history import SampleHistory, fill_missed_epochs, gather_history
from rlpheads.memorization.measures.sample_scores import needed_draws
from rlpheads.memorization.records.ledger_file import LedgerTable, read_ledger

_HISTORIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "class_loss": lambda loss_EN, _: loss_EN.double().mean(0),
    "class_confidence": lambda loss_EN, hit_EN: dataset_map(loss_EN, hit_EN).confidence_N,
    "class_variability": lambda loss_EN, hit_EN: dataset_map(loss_EN, hit_EN).variability_N,
    "first_learned": lambda _, hit_EN: first_learned_epoch(hit_EN).double(),
    "learned_for_good": lambda _, hit_EN: learned_for_good_epoch(hit_EN).double(),
    "forgetting_events": lambda _, hit_EN: forgetting_events(hit_EN).double(),
}
"""Measures of the class over the ledgers' epochs."""
_EPOCHS = ("first_learned", "learned_for_good")
_LABELS = {"bits": "bits", "score": "hit", "margin": "margin"}
"""Measures of the random labels, and the columns of the ledger that they are means of, over draws."""
MEASURES = (*_HISTORIES, *_LABELS, *(f"audit_{name}" for name in _LABELS))
"""What samples can be ranked by."""


@dataclass(frozen=True)
class RankingQuery:
    """What is asked for.

    Attributes:
        by: one of `MEASURES`.
        top: how many samples, at most.
        least: the smallest values first instead of the greatest.
        phase: which ledgers: running or clean (training images), or heldout.
        tap: for measures of the random labels; None: the last.
        class_name: samples of this class alone, by name or number of the class they were given; None: all.
    """

    by: str = "class_loss"
    top: int = 50
    least: bool = False
    phase: str = "running"
    tap: str | None = None
    class_name: str | None = None


@dataclass(frozen=True)
class Ranking:
    """Samples in their order.

    Attributes:
        query: what was asked for.
        tap: the tap that was looked at; None for measures of the class.
        reliability: of the ranking of all samples.
        table: the first samples: `rank`, the columns that name an image, those of the class, and `value`. Empty where the
            ranking is not resolvable.
    """

    query: RankingQuery
    tap: str | None
    reliability: Reliability
    table: pa.Table


def rank_samples(folder: Path, query: RankingQuery) -> Ranking:
    """Rank the samples of a run.

    Raises:
        RunError: there is no such measure, tap, class, or no ledger of the phase.
        LedgerError: a ledger is damaged.
    """
    if query.by not in MEASURES:
        raise _refusal("--by", query.by, MEASURES)
    if query.top < 1:
        raise RunError(f"--top is {query.top}; it must be at least 1")
    ledgers = list_ledgers(folder, query.phase)
    if not ledgers:
        raise RunError(
            f"{folder} has no {query.phase} ledger yet; one is written at the end of the last epoch, and with --ledger.every 1 "
            "at the end of each"
        )
    if query.by in _HISTORIES:
        history = gather_history(read_ledger(path, heads=False) for path in ledgers)
        value_N, reliability, tap = *_by_history(history, query.by), None
    else:
        value_N, reliability, tap = _by_labels(read_ledger(ledgers[-1]), query)
    last = read_ledger(ledgers[-1], heads=False)
    named = named_rows(folder, last)
    for name, column in class_columns(named, last):
        named = named.append_column(name, column)
    named = named.append_column("value", pa.array(value_N, mask=np.isnan(value_N)))
    if not reliability.is_resolvable:
        return Ranking(query, tap, reliability, _ranked(named.slice(0, 0), query))
    return Ranking(query, tap, reliability, _ranked(named, query))


def _by_history(history: SampleHistory, by: str) -> tuple[NDArray[np.float64], Reliability]:
    """Return the measure of every sample, and the reliability over the ledgers: every other one against the rest."""
    seen_N = history.seen_N
    hit_EN, loss_EN = (values_EN[:, seen_N] for values_EN in fill_missed_epochs(history))
    measure, num_epochs = _HISTORIES[by], len(hit_EN)
    value_N = np.full(len(seen_N), np.nan)
    value_N[seen_N.numpy()] = measure(loss_EN, hit_EN).numpy()
    if by in _EPOCHS:
        value_N = np.where(np.isnan(value_N), np.nan, np.array([*history.epochs, np.inf])[_positions(value_N)])
    if num_epochs < 2:
        return value_N, mean_reliability(loss_EN.numpy(), "ledgers")
    halves = [measure(loss_EN[half::2], hit_EN[half::2]).numpy() for half in (0, 1)]
    return value_N, stepped_up(rank_correlation(*halves), len(halves[0]), num_epochs, "ledgers")


def _positions(value_N: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.nan_to_num(value_N).astype(np.int64)


def _by_labels(table: LedgerTable, query: RankingQuery) -> tuple[NDArray[np.float64], Reliability, str]:
    """Return the measure of every sample at a tap, a mean over draws, and the reliability over these."""
    facts = table.metadata
    group = "audit" if query.by.startswith("audit_") else "own"
    if not facts.taps:
        raise RunError(f"--by {query.by}: the run has no heads; allowed: {', '.join(_HISTORIES)}")
    if group not in facts.draws:
        raise RunError(f"--by {query.by}: the run has no audit heads (heads.audit); nearest: {query.by[6:]}")
    taps = [str(tap) for tap in facts.taps]
    tap = query.tap if query.tap is not None else taps[-1]
    if tap not in taps:
        raise _refusal("--tap", tap, taps)
    values = getattr(table, _LABELS[query.by.removeprefix("audit_")])
    value_MN = values[taps.index(tap), facts.draws[group]].astype(np.float64)
    value_MN[:, ~table.seen] = np.nan
    least = needed_draws(max(1, int(table.seen.sum())), facts.num_labels)
    reliability = mean_reliability(value_MN, "draws", least_needed=max(2, least))
    mean_N = value_MN.mean(0)
    if query.by.endswith("score"):
        mean_N = (mean_N - 1 / facts.num_labels) / (1 - 1 / facts.num_labels)
    return mean_N, reliability, tap


def _ranked(named: pa.Table, query: RankingQuery) -> pa.Table:
    """Return the first samples of the wanted class, in order; equal values in the order of their indices."""
    if query.class_name is not None:
        names = pc.coalesce(named.column("given_name"), pc.cast(named.column("given_class"), pa.string()))
        chosen = pc.or_kleene(
            pc.equal(names, query.class_name),
            pc.equal(pc.cast(named.column("given_class"), "string"), query.class_name),
        )
        if named.num_rows and not pc.any(chosen).as_py():
            raise _refusal(
                "--class",
                query.class_name,
                sorted({str(name) for name in pc.unique(names).to_pylist() if name is not None}),
            )
        named = named.filter(chosen)
    named = named.filter(pc.is_valid(named.column("value")))
    value_N = torch.from_numpy(named.column("value").to_numpy().copy())
    order = torch.argsort(value_N, descending=not query.least, stable=True)[: query.top]
    table = named.take(pa.array(order.numpy()))
    return table.add_column(0, "rank", pa.array(np.arange(1, table.num_rows + 1)))


def _refusal(flag: str, given: str, allowed: tuple[str, ...] | list[str]) -> RunError:
    close = nearest(given, allowed)
    shown = ", ".join(allowed[:40]) + (", …" if len(allowed) > 40 else "")
    return RunError(f"{flag}: got {given!r}; allowed: {shown}" + (f"; nearest: {close}" if close else ""))
