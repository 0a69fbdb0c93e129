"""Exact evaluation: every sample of a split once, at any number of ranks, without augmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
import torch.distributed as dist
from torch import Tensor

from rlpheads.engine.config.schema import Precision
from rlpheads.engine.learner.precision import autocast
from rlpheads.engine.learner.step import Routes, forward_rows, record_rows
from rlpheads.engine.model.builder import Network
from rlpheads.loaders.contract.batch import Batch, Loader
from rlpheads.loaders.sources.verification import nothing_readable
from rlpheads.memorization.measures.calibration import CalibrationBins
from rlpheads.memorization.records.ledger import Ledger

MARGIN_LEVELS = {"p05": 0.05, "median": 0.5, "p95": 0.95}
"""Quantiles of the random labels' margins that are reported, by name. (The share above 0 is the accuracy, but for ties.)"""


@dataclass(frozen=True)
class Split:
    """A split as evaluation reads it: its loader in canonical order, its random labels, and a ledger to fill."""

    loader: Loader
    table_MN: Tensor
    ledger: Ledger


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        loss: mean cross-entropy of the classes, in nats.
        top1: accuracy of the classes, in [0, 1].
        rla_TM: random-label accuracy of each tap and draw, in [0, 1]; the audit heads' draws come last.
        bits_TM: bits about the random labels, summed over the samples, of each tap and draw.
        num_samples: samples seen.
        num_skipped: samples that could not be read and were left out.
        top5: share of samples whose class is among the five likeliest, in [0, 1] (1 for five classes or fewer); None
            for what a ledger alone remembers.
        ece: expected calibration error of the classes, in [0, 1]: how far the greatest probability of the softmax,
            whatever loss was trained, is from the accuracy; None likewise.
        margins_TM: quantiles of the random label's margin, in units of logits, of each tap and draw, by their names in
            `MARGIN_LEVELS`.
    """

    loss: float
    top1: float
    rla_TM: list[list[float]]
    bits_TM: list[list[float]]
    num_samples: int
    num_skipped: int = 0
    top5: float | None = None
    ece: float | None = None
    margins_TM: Mapping[str, list[list[float]]] = field(default_factory=dict)

    @property
    def rla_T(self) -> list[float]:  # noqa: N802 - shape suffix
        """Random-label accuracy of each tap, averaged over the draws."""
        return [fmean(rla_M) for rla_M in self.rla_TM]

    @property
    def bits_T(self) -> list[float]:  # noqa: N802 - shape suffix
        """Bits about the random labels of each tap, averaged over the draws."""
        return [fmean(bits_M) for bits_M in self.bits_TM]

    @property
    def margins_T(self) -> dict[str, list[float]]:  # noqa: N802 - shape suffix
        """Quantiles of the random label's margin of each tap, averaged over the draws, by name."""
        return {name: [fmean(values_M) for values_M in values_TM] for name, values_TM in self.margins_TM.items()}

    def of_draws(self, draws: slice) -> Evaluation:
        """Return the evaluation with some of the draws alone."""

        def chosen(values_TM: list[list[float]]) -> list[list[float]]:
            return [values_M[draws] for values_M in values_TM]

        margins_TM = {name: chosen(values_TM) for name, values_TM in self.margins_TM.items()}
        return replace(self, rla_TM=chosen(self.rla_TM), bits_TM=chosen(self.bits_TM), margins_TM=margins_TM)


def summarize(ledger: Ledger) -> Evaluation:
    """Return what a filled, merged ledger says of all its samples."""
    margins_QTM = ledger.label_margins_QTM(list(MARGIN_LEVELS.values()))
    return Evaluation(
        loss=ledger.class_loss,
        top1=ledger.class_accuracy,
        rla_TM=ledger.label_accuracy_TM.tolist(),
        bits_TM=ledger.label_bits_TM.tolist(),
        num_samples=ledger.num_seen,
        num_skipped=ledger.num_skipped,
        margins_TM=dict(zip(MARGIN_LEVELS, margins_QTM.tolist(), strict=True)),
    )


def merge(ledger: Ledger, world_size: int) -> None:
    """Sum a ledger over the ranks: each sample was recorded at one rank and is zero at the others. Collective."""
    if world_size > 1:
        for tensor in ledger.tensors().values():
            dist.all_reduce(tensor)


class EvaluationInterruptedError(RuntimeError):
    """A stop signal came during an evaluation."""


@torch.no_grad()
def evaluate(
    network: Network,
    split: Split,
    routes: Routes,
    prepare: Callable[[Batch], tuple[Tensor, Batch]],
    precision: Precision,
    interrupted: Callable[[], bool],
) -> Evaluation:
    """Fill `split.ledger` from one pass over the split and return its averages. Collective.

    Args:
        network: tapped classifier and its heads, in evaluation mode.
        split: what is evaluated.
        routes: the terms; only what is measured is computed.
        prepare: returns a delivered batch's normalised images beside it.
        precision: autocast type.
        interrupted: asked after every batch at every rank, with one answer for all; True ends the evaluation.

    Raises:
        EvaluationInterruptedError: `interrupted` said so.
        DatasetError: every image of the split was skipped.
    """
    split.ledger.reset()
    split.loader.set_epoch(0)
    device = split.table_MN.device
    among_five, calibration = torch.zeros((), dtype=torch.int64, device=device), CalibrationBins(device=device)
    for delivered in split.loader:
        images, batch = prepare(delivered)
        with autocast(images.device, precision):
            rows = forward_rows(network, images, batch, split.table_MN, routes)
        record_rows(split.ledger, batch, rows)
        among_five += _among_five(rows.logits_BC, batch)
        confidence_B = rows.logits_BC.float().softmax(-1).amax(-1)
        calibration.add(confidence_B, rows.class_hit_B, batch.index >= 0)
        if interrupted():
            raise EvaluationInterruptedError
    merge(split.ledger, routes.world_size)
    for total in (among_five, calibration.gap_Q):
        dist.all_reduce(total)
    if split.ledger.num_seen == 0:
        raise nothing_readable(split.loader.manifest)
    found = summarize(split.ledger)
    error = calibration.error(found.num_samples).item()
    return replace(found, top5=among_five.item() / found.num_samples, ece=error)


def _among_five(logits_BC: Tensor, batch: Batch) -> Tensor:
    """Count the rows, but for padding, whose class is among the five with the greatest logits."""
    likeliest = logits_BC.topk(min(5, logits_BC.shape[1])).indices
    return ((likeliest == batch.targets[:, None]).any(1) & (batch.index >= 0)).sum()
