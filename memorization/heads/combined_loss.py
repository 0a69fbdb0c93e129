"""Reduction of per-row head losses to the scalars that are back-propagated: weights, padding, mean over the global batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.memorization.arguments import check_count
from rlpheads.memorization.heads.head_losses import GatheredLosses, HeadLosses


@dataclass(frozen=True)
class TermWeights:
    """Weights of the terms that train the backbone; the heads' own cross-entropy has weight 1.

    Attributes:
        factor: λ of the regulariser, finite, at least 0. At 0 the regulariser is measured, not minimised.
        joint: μ of the joint cross-entropy, finite, at least 0.
    """

    factor: float = 0.0
    joint: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("factor", self.factor), ("joint", self.joint)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"the weight {name} must be finite and at least 0, got {value}")

    def factor_per_label(self, num_labels: int) -> float:
        """λ/K: what to report beside λ for `unlikelihood`, whose gradient at chance is proportional to 1/K."""
        return self.factor / num_labels


_UNWEIGHTED = TermWeights()


class CombinedLoss(NamedTuple):
    """Reduced losses of one micro-batch."""

    heads: Tensor
    """Scalar that trains the heads alone."""
    backbone: Tensor
    """Scalar that trains the backbone alone, beside its class loss."""
    scalars: dict[str, Tensor]
    """The terms before their weights, detached, on the device: "head_cross_entropy", and "regularizer" and "joint" where
    they were computed. Like the totals: sum them over micro-batches and average them over ranks."""

    @property
    def total(self) -> Tensor:
        """Scalar to add to the class loss and back-propagate, where both routes have one loss scale."""
        return self.heads + self.backbone


def combine_losses(
    losses: HeadLosses | GatheredLosses,
    valid_B: Tensor | None = None,
    num_global_rows: int | None = None,
    world_size: int = 1,
    weights: TermWeights = _UNWEIGHTED,
) -> CombinedLoss:
    """Weighted sum of the terms: each a mean over the global batch's rows, a mean over draws and a sum over taps.

    `combine_losses(losses).total` is what one process adds to its class loss to measure; where ranks have batches of one
    size, it is right for each of them, too, as DDP averages it.

    Args:
        losses: per-row losses of this rank's micro-batch, or of all ranks', where classes are sharded. Gradients of sharded
            heads are not averaged, so that what trains them is scaled by 1 / num_global_rows alone.
        valid_B: bool, False for padding rows, which contribute exactly 0 whatever their losses hold; gathered losses bring
            their own. None: there is no padding.
        num_global_rows: rows of the whole global batch (all ranks, all micro-batches) that are no padding. None: those of
            these losses.
        world_size: ranks whose gradients are averaged: the local sum is scaled by world_size / num_global_rows, so that
            the average over ranks is the mean over the global batch.
        weights: λ and μ.

    Raises:
        ValueError: a size below 1, or a weight above 0 for a term that was not computed.
    """
    num_rows = (losses.losses if isinstance(losses, GatheredLosses) else losses).cross_entropy_TMB.shape[-1]
    num_global_rows = check_count("num_global_rows", num_rows if num_global_rows is None else num_global_rows)
    world_size = check_count("world_size", world_size)
    num_averaged = world_size
    if isinstance(losses, GatheredLosses):
        valid_B, num_averaged = losses.valid_G, 1
        losses = losses.losses
    terms = {
        "head_cross_entropy": (1.0, losses.cross_entropy_TMB),
        "regularizer": (weights.factor, losses.regularizer_RMB),
        "joint": (weights.joint, losses.joint_TMB),
    }
    heads = backbone = losses.cross_entropy_TMB.new_zeros(())
    scalars = {}
    for name, (weight, rows) in terms.items():
        if rows is None:
            if weight:
                raise ValueError(f"the {name} term has weight {weight}, but the heads did not compute it")
            continue
        counted = rows if valid_B is None else torch.where(valid_B, rows, 0.0)
        value = counted.sum() * (num_averaged / num_global_rows / rows.shape[1])
        scalars[name] = value.detach()
        if name == "head_cross_entropy":
            heads = heads + value
        elif weight:  # a term of weight 0 is left out: 0 times an infinite loss would be NaN
            backbone = backbone + weight * (world_size / num_averaged) * value
    return CombinedLoss(heads, backbone, scalars)
