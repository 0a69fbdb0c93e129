"""Exact evaluation: every sample of a split once, at any number of ranks, without augmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from rlpheads.engine.config.schema import Precision
from rlpheads.engine.learner.clean_features import CleanFeatures
from rlpheads.engine.learner.precision import autocast
from rlpheads.engine.learner.split import Split
from rlpheads.engine.learner.step import Routes, forward_rows, record_rows
from rlpheads.engine.model.builder import Network
from rlpheads.loaders.contract.batch import Batch
from rlpheads.memorization.measures.calibration import CalibrationBins
from rlpheads.memorization.records.ledger import Ledger


class ClassTotals(NamedTuple):
    """What an evaluation sums beside the ledger, over all ranks' samples, still on the device."""

    num_among_five: Tensor
    """Samples whose class has one of the five greatest logits, int64 ()."""
    calibration: CalibrationBins


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
    prepare: Callable[[Batch], Batch],
    precision: Precision,
    interrupted: Callable[[], bool],
    advance: Callable[[int], object] = int,
    features: CleanFeatures | None = None,
) -> ClassTotals:
    """Fill `split.ledger` from one pass over the split; every rank ends with all of it. Collective.

    Args:
        network: tapped classifier and its heads, in evaluation mode.
        split: what is evaluated.
        routes: the terms; only what is measured is computed.
        prepare: returns a delivered batch with normalised images.
        precision: autocast type.
        interrupted: asked after every batch at every rank, with one answer for all; True ends the evaluation.
        advance: called with the images of every batch, over all ranks; what it returns is thrown away.
        features: takes the features of every tap; every rank ends with all of them.

    Raises:
        EvaluationInterruptedError: `interrupted` said so.
    """
    split.ledger.reset()
    split.loader.set_epoch(0)
    device = split.table_MN.device
    among_five, calibration = torch.zeros((), dtype=torch.int64, device=device), CalibrationBins(device=device)
    for delivered in split.loader:
        batch = prepare(delivered)
        with autocast(batch.images.device, precision):
            rows = forward_rows(network, batch, split.table_MN, routes)
        record_rows(split.ledger, batch, rows)
        if features is not None:
            features.add(batch, rows.taps)
        among_five += _among_five(rows.logits_BC, batch)
        calibration.add(rows.confidence_B, rows.class_hit_B, batch.index >= 0)
        advance(delivered.num_global_rows)
        if interrupted():
            raise EvaluationInterruptedError
    merge(split.ledger, routes.world_size)
    if features is not None:
        features.merge(routes.world_size)
    for total in (among_five, calibration.gap_Q):
        dist.all_reduce(total)
    return ClassTotals(among_five, calibration)


def _among_five(logits_BC: Tensor, batch: Batch) -> Tensor:
    """Count the rows, but for padding, whose class is among the five with the greatest logits."""
    likeliest = logits_BC.topk(min(5, logits_BC.shape[1])).indices
    return ((likeliest == batch.targets[:, None]).any(1) & (batch.index >= 0)).sum()
