"""Per-sample measures gathered from the ledgers of a run's epochs: one value for each sample and measure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rlpheads.memorization.measures.sample_dynamics import (
    HITS_IN_A_ROW,
    dataset_map,
    first_learned_epoch,
    forgetting_events,
    learned_for_good_epoch,
    loss_trace_iqr,
)
from rlpheads.memorization.measures.sample_scores import sample_scores
from rlpheads.memorization.records.ledger_file import LedgerError, LedgerMetadata, LedgerTable

FIRST_LEARNED = f"first-learned epoch ({HITS_IN_A_ROW} in a row)"
FIRST_HIT = "first hit"
"""The literal definition of when a sample was learned, which counts a chance hit as learning."""

DYNAMIC_MEASURES = (
    FIRST_LEARNED,
    "learned for good",
    FIRST_HIT,
    "forgetting events",
    "class variability",
    "class loss IQR",
)
"""Measures that compare epochs: one epoch cannot give them."""


@dataclass(frozen=True)
class SampleHistory:
    """The columns of E ledgers of one phase, for N samples, T taps and M draws.

    Attributes:
        metadata: of the last ledger.
        epochs: epochs of the ledgers, in their order.
        seen_EN: bool, whether the epoch reached the sample.
        class_hit_EN: bool; False where not seen.
        class_loss_EN: fp32, nats; NaN where not seen.
        hit_TMN: fp64, random-label hits averaged over the epochs that reached the sample; NaN for one never reached.
        bits_GTN: fp64, bits about the random label, averaged over those epochs and over the draws of each group of
            `metadata.draws`: the heads' own, and those of the audit heads if there are any.
        margin_GTN: fp64, margin of the random label, averaged likewise.
    """

    metadata: LedgerMetadata
    epochs: tuple[int, ...]
    seen_EN: Tensor
    class_hit_EN: Tensor
    class_loss_EN: Tensor
    hit_TMN: Tensor
    bits_GTN: Tensor
    margin_GTN: Tensor

    @property
    def seen_N(self) -> Tensor:  # noqa: N802 (shape suffix)
        """Samples that at least one epoch reached: bool (N,)."""
        return self.seen_EN.any(0)


def gather_history(tables: Iterable[LedgerTable]) -> SampleHistory:
    """Gather the ledgers of one phase, given in the order of their epochs.

    They are taken one at a time, and the columns of the heads are summed at once: memory is 6·E + 8·T·(M + 2·G) bytes a
    sample for G groups of draws, not that of E ledgers.

    Raises:
        LedgerError: there is none, or they are not of one run and phase.
    """
    metadata_E: list[LedgerMetadata] = []
    classes: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    sums: list[np.ndarray] = []
    for table in tables:
        metadata_E.append(table.metadata)
        _check_same_run(metadata_E[0], metadata_E[-1])
        if classes and len(table.index) != len(classes[0][0]):
            raise LedgerError(
                f"the ledger of epoch {table.metadata.epoch} has {len(table.index)} samples, and the first one has "
                f"{len(classes[0][0])}: one of them is damaged"
            )
        classes.append((table.seen, table.class_hit & table.seen, table.class_loss))
        columns = (table.hit, _group_means(table, table.bits), _group_means(table, table.margin))
        terms = [np.where(table.seen, column, 0.0) for column in columns]
        sums = [total + term for total, term in zip(sums, terms, strict=True)] if sums else terms
    if not metadata_E:
        raise LedgerError("a history needs at least one ledger")
    seen_EN, class_hit_EN, class_loss_EN = (torch.from_numpy(np.stack(column)) for column in zip(*classes, strict=True))
    times_N = seen_EN.sum(0).double()  # never reached: 0/0 is the NaN that it should be
    hit_TMN, bits_GTN, margin_GTN = (torch.from_numpy(total) / times_N for total in sums)
    epochs = tuple(metadata.epoch for metadata in metadata_E)
    return SampleHistory(metadata_E[-1], epochs, seen_EN, class_hit_EN, class_loss_EN, hit_TMN, bits_GTN, margin_GTN)


def sample_measures(history: SampleHistory) -> dict[str, Tensor]:
    """Return every measure that the history allows, by name: fp64 (N,), NaN for samples never reached.

    `class loss` is the mean over the epochs: the cumulative sample loss (CSL) over their number, which ranks alike.

    An epoch that did not reach a sample (a dropped partial batch) counts as a repetition of the one before; before the
    first one that did, the sample was not learned. Measures of the random labels are averages over the epochs, one for each
    tap, of the heads' own draws and, apart ("audit label …"), of the audit heads'; `DYNAMIC_MEASURES` need two epochs.
    """
    seen_N = history.seen_N
    hit_EN, loss_EN = (values_EN[:, seen_N] for values_EN in fill_missed_epochs(history))
    if not bool(seen_N.any()):
        raise LedgerError("no epoch reached any sample: there is nothing to measure")
    class_map = dataset_map(loss_EN, hit_EN)
    measures = {
        FIRST_LEARNED: first_learned_epoch(hit_EN),
        "learned for good": learned_for_good_epoch(hit_EN),
        FIRST_HIT: first_learned_epoch(hit_EN, 1),
        "forgetting events": forgetting_events(hit_EN),
        "class loss": loss_EN.double().mean(0),
        "class confidence": class_map.confidence_N,
        "class variability": class_map.variability_N,
        "class loss IQR": loss_trace_iqr(loss_EN),
    }
    if len(history.epochs) < 2:
        measures = {name: values_S for name, values_S in measures.items() if name not in DYNAMIC_MEASURES}
    for group, (name, draws) in enumerate(history.metadata.draws.items()):
        prefix = "" if name == "own" else f"{name} "
        for position, tap in enumerate(history.metadata.taps):
            scores = sample_scores(history.hit_TMN[position, draws][:, seen_N], history.metadata.num_labels)
            measures[f"{prefix}label score, block {tap}"] = scores.score_N
            measures[f"{prefix}label bits, block {tap}"] = history.bits_GTN[group, position, seen_N]
            measures[f"{prefix}label margin, block {tap}"] = history.margin_GTN[group, position, seen_N]
    nothing_N = torch.full(seen_N.shape, torch.nan, dtype=torch.float64)
    return {name: nothing_N.masked_scatter(seen_N, values_S.double()) for name, values_S in measures.items()}


def _group_means(table: LedgerTable, values_TMN: np.ndarray) -> np.ndarray:
    """Average (T, M, N) over the draws of each group: fp64 (G, T, N)."""
    groups = table.metadata.draws.values()
    return np.stack([values_TMN[:, draws].mean(1, dtype=np.float64) for draws in groups])


def fill_missed_epochs(history: SampleHistory) -> tuple[Tensor, Tensor]:
    """Hits and losses in which an epoch that did not reach a sample repeats the last one that did: (E, N) both.

    Epochs before the first that reached it are misses, with the loss of that first one.
    """
    seen_EN = history.seen_EN
    epoch_E1 = torch.arange(len(seen_EN))[:, None]
    last_EN = torch.where(seen_EN, epoch_E1, -1).cummax(0).values
    first_N = seen_EN.to(torch.uint8).argmax(0)
    source_EN = torch.where(last_EN < 0, first_N, last_EN)
    hit_EN = history.class_hit_EN.gather(0, source_EN) & (last_EN >= 0)
    return hit_EN, history.class_loss_EN.gather(0, source_EN)


def _check_same_run(first: LedgerMetadata, other: LedgerMetadata) -> None:
    if replace(other, epoch=first.epoch, step=first.step) != first:
        raise LedgerError(
            f"the ledgers of epochs {first.epoch} and {other.epoch} are not of one run and phase: {first} and {other}"
        )
