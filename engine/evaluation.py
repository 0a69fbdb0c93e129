"""Exact evaluation: every sample of a split once, at any number of ranks, without augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

import torch
import torch.distributed as dist
from torch import Tensor

from rlpheads.engine.config import Precision
from rlpheads.engine.models import Network
from rlpheads.engine.precision import autocast
from rlpheads.engine.step import Routes, forward_rows, record_rows
from rlpheads.loaders.batch import Batch, Loader
from rlpheads.memorization.ledger import Ledger


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
    """

    loss: float
    top1: float
    rla_TM: list[list[float]]
    bits_TM: list[list[float]]
    num_samples: int
    num_skipped: int = 0
    top5: float | None = None

    @property
    def rla_T(self) -> list[float]:  # noqa: N802 - shape suffix
        """Random-label accuracy of each tap, averaged over the draws."""
        return [fmean(rla_M) for rla_M in self.rla_TM]

    @property
    def bits_T(self) -> list[float]:  # noqa: N802 - shape suffix
        """Bits about the random labels of each tap, averaged over the draws."""
        return [fmean(bits_M) for bits_M in self.bits_TM]

    def of_draws(self, draws: slice) -> Evaluation:
        """Return the evaluation with some of the draws alone."""
        rla_TM, bits_TM = ([values_M[draws] for values_M in values_TM] for values_TM in (self.rla_TM, self.bits_TM))
        return replace(self, rla_TM=rla_TM, bits_TM=bits_TM)


def summarize(ledger: Ledger) -> Evaluation:
    """Return the averages over a filled, merged ledger."""
    return Evaluation(
        loss=ledger.class_loss,
        top1=ledger.class_accuracy,
        rla_TM=ledger.label_accuracy_TM.tolist(),
        bits_TM=ledger.label_bits_TM.tolist(),
        num_samples=ledger.num_seen,
        num_skipped=ledger.num_skipped,
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
    """
    split.ledger.reset()
    split.loader.set_epoch(0)
    among_five = torch.zeros((), dtype=torch.int64, device=split.table_MN.device)
    for delivered in split.loader:
        images, batch = prepare(delivered)
        with autocast(images.device, precision):
            rows = forward_rows(network, images, batch, split.table_MN, routes)
        record_rows(split.ledger, batch, rows)
        among_five += _among_five(rows.logits_BC, batch)
        if interrupted():
            raise EvaluationInterruptedError
    merge(split.ledger, routes.world_size)
    dist.all_reduce(among_five)
    found = summarize(split.ledger)
    return replace(found, top5=among_five.item() / found.num_samples if found.num_samples else 0.0)


def _among_five(logits_BC: Tensor, batch: Batch) -> Tensor:
    """Count the rows, but for padding, whose class is among the five with the greatest logits."""
    likeliest = logits_BC.topk(min(5, logits_BC.shape[1])).indices
    return ((likeliest == batch.targets[:, None]).any(1) & (batch.index >= 0)).sum()
