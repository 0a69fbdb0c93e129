"""Samples ranked by one measure, with how reliable that ranking is; a ranking of chance is called what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
        class_name: samples of this class alone, by the name of the class they were given, or, where no class is called so, by
            its number; None: all.
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
    _check_query(query)
    return SampleRanker(folder, query.phase).rank(query)


class SampleRanker:
    """Ranks the samples of one phase of a run by several measures, reading each file once, when it is first needed.

    Args:
        folder: the run folder.
        phase: running, clean or heldout.
        most_values: samples times ledgers that are compared, at most; of more ledgers every so many are taken, up to the last.

    Raises:
        RunError: there is no ledger of the phase.
    """

    def __init__(self, folder: Path, phase: str, most_values: int | None = None):
        self.phase = phase
        self._folder = folder
        self._ledgers = list_ledgers(folder, phase)
        self._most_values = most_values
        if not self._ledgers:
            raise RunError(
                f"{folder} has no {phase} ledger yet; one is written at the end of the last epoch, and with --ledger.every 1 "
                "at the end of each"
            )

    @cached_property
    def last(self) -> LedgerTable:
        """What the last ledger says of the classes."""
        return read_ledger(self._ledgers[-1], heads=False)

    @cached_property
    def history(self) -> SampleHistory:
        """What the ledgers say of the classes."""
        step = 1
        if self._most_values is not None:
            step = -(-len(self._ledgers) * len(self.last.index) // self._most_values)
        chosen = self._ledgers[:-1][::-1][step - 1 :: step][::-1]
        return gather_history(chain((read_ledger(path, heads=False) for path in chosen), [self.last]))

    @cached_property
    def filled(self) -> tuple[Tensor, Tensor]:
        """Hits and losses of the samples that were seen, (E, S) both, as `fill_missed_epochs` gives them."""
        hit_EN, loss_EN = fill_missed_epochs(self.history)
        return hit_EN[:, self.history.seen_N], loss_EN[:, self.history.seen_N]

    @cached_property
    def named(self) -> pa.Table:
        """Which image each sample is, and what the last ledger says of its class."""
        named = named_rows(self._folder, self.last)
        for name, column in class_columns(named, self.last):
            named = named.append_column(name, column)
        return named

    def rank(self, query: RankingQuery) -> Ranking:
        """Rank by one measure; the query is of this phase.

        Raises:
            RunError: there is no such measure, tap or class.
        """
        _check_query(query)
        if query.by in _HISTORIES:
            value_N, reliability, tap = *self._by_history(query.by), None
        else:
            value_N, reliability, tap = _by_labels(read_ledger(self._ledgers[-1]), query)
        table = self._ranked(value_N, query) if reliability.is_resolvable else self._ranked(value_N[:0], query)
        return Ranking(query, tap, reliability, table)

    def _by_history(self, by: str) -> tuple[NDArray[np.float64], Reliability]:
        """Return the measure of every sample, and the reliability over the ledgers: every other one against the rest."""
        seen_N, (hit_EN, loss_EN) = self.history.seen_N, self.filled
        measure, num_epochs = _HISTORIES[by], len(hit_EN)
        value_N = np.full(len(seen_N), np.nan)
        if not seen_N.any():  # every batch was left out
            return value_N, mean_reliability(loss_EN.numpy(), "ledgers")
        value_N[seen_N.numpy()] = measure(loss_EN, hit_EN).numpy()
        if by in _EPOCHS:
            value_N = np.where(np.isnan(value_N), np.nan, np.array([*self.history.epochs, np.inf])[_positions(value_N)])
        if num_epochs < 2:
            return value_N, mean_reliability(loss_EN.numpy(), "ledgers")
        halves = [measure(loss_EN[half::2], hit_EN[half::2]).numpy() for half in (0, 1)]
        return value_N, stepped_up(rank_correlation(*halves), len(halves[0]), num_epochs, "ledgers")

    def _ranked(self, value_N: NDArray[np.float64], query: RankingQuery) -> pa.Table:
        """Return the first samples of the wanted class, in order; equal values in the order of their indices."""
        wanted_N = ~np.isnan(value_N)
        if query.class_name is not None:
            wanted_N &= self._of_class(query.class_name)[: len(value_N)]
        index_S = np.flatnonzero(wanted_N)
        order = np.argsort(value_N[index_S] if query.least else -value_N[index_S], kind="stable")[: query.top]
        table = self.named.take(pa.array(index_S[order]))
        table = table.append_column("value", pa.array(value_N[index_S[order]]))
        return table.add_column(0, "rank", pa.array(np.arange(1, table.num_rows + 1)))

    def _of_class(self, name: str) -> NDArray[np.bool_]:
        """Return which samples were given the class of this name, or, where none is called so, of this number."""
        numbers = pc.cast(self.named.column("given_class"), pa.string())
        names = pc.coalesce(self.named.column("given_name"), numbers)
        is_name = any(pc.any(pc.equal(self.named.column(each), name)).as_py() for each in ("given_name", "class_name"))
        chosen = pc.equal(names if is_name else numbers, name)
        if self.named.num_rows and not pc.any(chosen).as_py():
            raise _refusal(
                "--class", name, sorted({str(each) for each in pc.unique(names).to_pylist() if each is not None})
            )
        return pc.fill_null(chosen, False).to_numpy(zero_copy_only=False)


def _check_query(query: RankingQuery) -> None:
    if query.by not in MEASURES:
        raise _refusal("--by", query.by, MEASURES)
    if query.top < 1:
        raise RunError(f"--top is {query.top}; it must be at least 1")


def _positions(value_N: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.nan_to_num(value_N).astype(np.int64)


def _by_labels(table: LedgerTable, query: RankingQuery) -> tuple[NDArray[np.float64], Reliability, str]:
    """Return the measure of every sample at a tap, a mean over draws, and the reliability over these."""
    facts = table.metadata
    group = "audit" if query.by.startswith("audit_") else "own"
    if not facts.taps:
        raise RunError(f"--by {query.by}: the run has no heads; allowed: {', '.join(_HISTORIES)}")
    if group not in facts.draws:
        raise RunError(f"--by {query.by}: the run has no audit heads (heads.audit_draws); nearest: {query.by[6:]}")
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


def _refusal(flag: str, given: str, allowed: tuple[str, ...] | list[str]) -> RunError:
    close = nearest(given, allowed)
    shown = ", ".join(allowed[:40]) + (", …" if len(allowed) > 40 else "")
    return RunError(f"{flag}: got {given!r}; allowed: {shown}" + (f"; nearest: {close}" if close else ""))
