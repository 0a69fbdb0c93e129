"""One optimizer step: from a batch on the device to updated weights, with no host synchronisation anywhere.

Three losses take three routes (method.md): the class loss trains the backbone, the random-label cross-entropy trains
the heads only, and the regulariser on the heads' output trains the backbone only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlpheads.engine.config import Config
from rlpheads.engine.learner import Learner
from rlpheads.engine.models import TappedModel
from rlpheads.engine.precision import autocast
from rlpheads.engine.streams import stream_seed
from rlpheads.loaders.batch import Batch
from rlpheads.memorization.heads import HeadLosses, HeadTerms
from rlpheads.memorization.ledger import Ledger
from rlpheads.memorization.regularizer import TermWeights, combine
from rlpheads.memorization.taps import select_taps


class RowLosses(NamedTuple):
    """What a forward pass says of every row of a batch."""

    class_loss_B: Tensor
    smoothed_loss_B: Tensor
    class_hit_B: Tensor
    heads: HeadLosses | None


@dataclass(frozen=True)
class Routes:
    """Which terms are computed, and with which weights they reach the total.

    Attributes:
        terms: what the heads compute.
        weights: λ and μ.
        label_smoothing: smoothing of the class loss.
        world_size: number of ranks, whose gradients DDP averages.

    """

    terms: HeadTerms
    weights: TermWeights
    label_smoothing: float
    world_size: int

    def measuring(self) -> Routes:
        """Return the same routes with nothing but the measurement: what an evaluation computes."""
        return replace(self, terms=HeadTerms())


def build_routes(config: Config, model: TappedModel, world_size: int) -> Routes:
    """Translate the configured regulariser and joint weight into terms over the model's taps.

    Raises:
        ValueError: a regularised tap is no block, or has no head.

    """
    factor, weights = config.regularizer.factor, TermWeights(config.regularizer.factor, config.heads.joint)
    regularized: tuple[int, ...] = ()
    if factor > 0:
        chosen = config.regularizer.taps
        blocks = model.taps if chosen == "all" else select_taps(chosen, model.num_blocks)
        if missing := sorted(set(blocks) - set(model.taps)):
            raise ValueError(f"regularizer.taps names {missing}, where no head is; heads.taps are {list(model.taps)}")
        regularized = tuple(model.taps.index(block) for block in blocks)
    terms = HeadTerms(config.regularizer.kind if regularized else None, regularized, joint=config.heads.joint > 0)
    return Routes(terms, weights, config.model.label_smoothing, world_size)


def forward_rows(
    model: nn.Module, heads: nn.Module | None, images: Tensor, batch: Batch, table_MN: Tensor, routes: Routes
) -> RowLosses:
    """Run model and heads on normalised images and return every row's losses; padding rows hold finite rubbish."""
    logits, taps = model(images)
    log_p = F.log_softmax(logits.float(), dim=-1)
    class_loss_B = -log_p.gather(1, batch.targets[:, None]).squeeze(1)
    smoothing = routes.label_smoothing
    smoothed_loss_B = (1 - smoothing) * class_loss_B - smoothing * log_p.mean(-1) if smoothing else class_loss_B
    head_losses = None
    if heads is not None:
        labels_MB = table_MN[:, batch.index.clamp(min=0)]
        head_losses = heads(taps, labels_MB, routes.terms)
    return RowLosses(class_loss_B, smoothed_loss_B, logits.argmax(-1) == batch.targets, head_losses)


def record_rows(ledger: Ledger, batch: Batch, rows: RowLosses) -> None:
    """Write every row of a batch into the ledger at its index."""
    heads = rows.heads
    ledger.record(
        batch.index,
        batch.targets,
        rows.class_loss_B.detach(),
        rows.class_hit_B,
        None if heads is None else heads.hit_TMB,
        None if heads is None else heads.bits_TMB.detach(),
        None if heads is None else heads.margin_TMB.detach(),
    )


@dataclass(frozen=True)
class TrainStep:
    """The training step, callable with a batch of this rank's rows that is already on the device."""

    learner: Learner
    normalize: nn.Module
    table_MN: Tensor
    ledger: Ledger
    routes: Routes
    config: Config
    rank: int

    def __call__(self, batch: Batch, num_updates: int) -> dict[str, Tensor]:
        """Take optimizer step number `num_updates` (from 0).

        Returns:
            This rank's share of each figure of the step, as 0-d tensors on the device: their mean over the ranks is
            the figure of the global batch.

        """
        # One seed a step instead of a saved generator: dropout continues exactly after a resume at any step.
        torch.manual_seed(stream_seed(self.config.seed, "dropout", num_updates, self.rank))
        micro_batches = batch.chunks(self.config.accumulate)
        with self.learner.without_sync():
            shares = [self._forward_backward(micro) for micro in micro_batches[:-1]]
        shares.append(self._forward_backward(micro_batches[-1]))
        self.learner.update(num_updates)
        return {name: sum((share[name] for share in shares[1:]), shares[0][name]) for name in shares[0]}

    def _forward_backward(self, batch: Batch) -> dict[str, Tensor]:
        backbone, heads = self.learner.backbone, self.learner.heads
        with autocast(batch.images.device, self.config.precision):
            rows = forward_rows(
                backbone.wrapped,
                None if heads is None else heads.wrapped,
                self.normalize(batch.images),
                batch,
                self.table_MN,
                self.routes,
            )
        valid_B = batch.index >= 0
        scale = self.routes.world_size / batch.num_global_rows
        class_loss = torch.where(valid_B, rows.smoothed_loss_B, 0.0).sum() * scale
        shares = {"class_loss": class_loss.detach(), "top1": (rows.class_hit_B & valid_B).sum() * scale}
        total = class_loss
        if rows.heads is not None:
            terms = combine(rows.heads, valid_B, batch.num_global_rows, self.routes.world_size, self.routes.weights)
            total = total + terms.total
            shares |= terms.scalars
            hits_TM = (rows.heads.hit_TMB & valid_B).sum(-1) * scale
            shares |= {"rla_first": hits_TM[0].mean(), "rla_last": hits_TM[-1].mean()}
        total.backward()
        record_rows(self.ledger, batch, rows)
        return shares
