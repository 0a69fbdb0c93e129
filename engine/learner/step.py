"""One optimizer step: from a batch on the device to updated weights, with no host synchronisation anywhere.

Three losses take three routes (method.md): the class loss trains the backbone, the random-label cross-entropy trains
the heads only, and the regulariser on the heads' output trains the backbone only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from rlpheads.engine.config.schema import Config
from rlpheads.engine.config.streams import stream_seed
from rlpheads.engine.learner.class_loss import ClassLoss
from rlpheads.engine.learner.learner import Learner
from rlpheads.engine.learner.precision import autocast
from rlpheads.engine.learner.runtime import SideStream, begin_compiled_pass
from rlpheads.engine.learner.update_guard import judge
from rlpheads.engine.model.builder import Network
from rlpheads.engine.model.tapped_model import TappedModel
from rlpheads.loaders.contract.batch import Batch
from rlpheads.memorization.heads.combined_loss import CombinedLoss, TermWeights, combine_losses
from rlpheads.memorization.heads.head_losses import GatheredLosses, HeadLosses, HeadTerms
from rlpheads.memorization.heads.sharded_heads import HeadCall, ShardedRLPHeads, forward_together
from rlpheads.memorization.records.ledger import Ledger

_Scalars: TypeAlias = dict[str, Tensor]
"""0-d tensors on the device, by name."""
_UNWEIGHTED = TermWeights()
"""Of the audit heads, which train nothing but themselves."""
_LARGEST = 1e30
"""Shown where a root mean square overflows: it is finite, as the images are, and a mean over ranks still is."""


class RowLosses(NamedTuple):
    """What a forward pass says of every row of a batch; of a mixed row, of its own sample, but for what is trained.

    Heads that are sharded over the ranks tell of the rows of all ranks; `own` is what they say of this batch.
    """

    class_loss_B: Tensor
    trained_loss_B: Tensor
    class_hit_B: Tensor
    predicted_B: Tensor
    confidence_B: Tensor
    logits_BC: Tensor
    heads: HeadLosses | GatheredLosses | None
    audit: HeadLosses | GatheredLosses | None
    taps: Sequence[Tensor]


@dataclass(frozen=True)
class Routes:
    """Which terms are computed; their weights, λ and μ, are given at each step.

    Attributes:
        terms: what the heads compute.
        class_loss: what trains the classifier.
        num_draws: draws that the heads (not the audit heads) learn.
        world_size: number of ranks, whose gradients DDP averages.
    """

    terms: HeadTerms
    class_loss: ClassLoss
    num_draws: int
    world_size: int

    def measuring(self) -> Routes:
        """Return the same routes with nothing but the measurement: what an evaluation computes."""
        return replace(self, terms=HeadTerms())


def build_routes(config: Config, model: TappedModel, world_size: int) -> Routes:
    """Return the terms that the configured regulariser and joint weight ask for, over the model's taps.

    Raises:
        ValueError: a regularised tap is no place, or has no head.
    """
    regularized: tuple[int, ...] = ()
    if config.regularizer.factor > 0:
        chosen = config.regularizer.taps
        places = model.places if chosen == "all" else model.select(chosen)
        if missing := [place.name for place in places if place not in model.places]:
            raise ValueError(f"regularizer.taps names {missing}, where no head is; heads.taps are {list(model.taps)}")
        regularized = tuple(model.places.index(place) for place in places)
    terms = HeadTerms(config.regularizer.kind if regularized else None, regularized, joint=config.heads.joint > 0)
    class_loss = ClassLoss(config.model.loss, config.model.label_smoothing, config.model.bce_threshold)
    return Routes(terms, class_loss, config.heads.draws, world_size)


def forward_rows(
    network: Network, batch: Batch, table_MN: Tensor, routes: Routes, heads_stream: SideStream | None = None
) -> RowLosses:
    """Return every row's losses on normalised images; those of padding rows are finite and mean nothing.

    Args:
        network: model, heads and audit heads.
        batch: the rows' prepared images, targets and indices, and the samples that they were mixed with.
        table_MN: random labels, those of the heads' draws first and those of the audit heads behind them.
        routes: the terms of the heads; audit heads have none but their own loss.
        heads_stream: where the heads run, who reads their losses there or behind its `join`; None: with the rest.
    """
    logits, taps = network.model(batch.images)
    heads = audit = None
    if network.heads is not None or network.audit is not None:
        labels = _random_labels(table_MN, batch)
        of_draws = labels.of_draws(slice(routes.num_draws)), labels.of_draws(slice(routes.num_draws, None))
        given = [labels.first_MB, batch.index, *taps, *(() if labels.pair is None else labels.pair)]
        with (heads_stream or SideStream()).work(*given):
            heads, audit = _losses_of_heads(network, taps, of_draws, routes.terms, batch)
    class_loss_B, trained_loss_B = routes.class_loss(logits, batch.targets, batch.partners)
    predicted_B, confidence_B = logits.argmax(-1), logits.detach().float().softmax(-1).amax(-1)
    class_hit_B = predicted_B == batch.targets
    return RowLosses(class_loss_B, trained_loss_B, class_hit_B, predicted_B, confidence_B, logits, heads, audit, taps)


def _losses_of_heads(
    network: Network, taps: list[Tensor], labels: tuple[_RandomLabels, _RandomLabels], terms: HeadTerms, batch: Batch
) -> tuple[HeadLosses | GatheredLosses | None, HeadLosses | GatheredLosses | None]:
    """Return the losses of heads and audit heads; where both are sharded, their rows travel together."""
    heads, audit = network.heads, network.audit
    if isinstance(heads, ShardedRLPHeads) and isinstance(audit, ShardedRLPHeads):
        calls = [
            HeadCall(each, of_draws.first_MB, of_each, of_draws.pair)
            for each, of_draws, of_each in zip((heads, audit), labels, (terms, HeadTerms()), strict=True)
        ]
        own, audited = forward_together(calls, taps, batch.index >= 0)
        return own, audited
    return _head_losses(heads, taps, labels[0], terms, batch), _head_losses(audit, taps, labels[1], HeadTerms(), batch)


def _head_losses(
    heads: nn.Module | None, taps: list[Tensor], labels: _RandomLabels, terms: HeadTerms, batch: Batch
) -> HeadLosses | GatheredLosses | None:
    if heads is None:
        return None
    of_all_ranks = {"valid_B": batch.index >= 0} if isinstance(heads, ShardedRLPHeads) else {}
    losses: HeadLosses | GatheredLosses = heads(taps, labels.first_MB, terms, labels.pair, **of_all_ranks)
    return losses


class _RandomLabels(NamedTuple):
    """The random labels of a batch: each row's own, and for mixed rows the partner's with the weight of the own."""

    first_MB: Tensor
    pair: tuple[Tensor, Tensor] | None

    def of_draws(self, draws: slice) -> _RandomLabels:
        return _RandomLabels(self.first_MB[draws], None if self.pair is None else (self.pair[0][draws], self.pair[1]))


def _random_labels(table_MN: Tensor, batch: Batch) -> _RandomLabels:
    """Gather the labels of all draws; a padding row gets some label in range."""
    first_MB = table_MN[:, batch.index.clamp(min=0)]
    if batch.partners is None:
        return _RandomLabels(first_MB, None)
    return _RandomLabels(first_MB, (table_MN[:, batch.partners.index.clamp(min=0)], batch.partners.weight))


def record_rows(ledger: Ledger, batch: Batch, rows: RowLosses) -> None:
    """Write every row of a batch into the ledger at its index, the audit heads' draws behind the heads' own.

    Rows that could not be read are marked as skipped; how many is known to the host, so that nothing waits.
    """
    of_draws: _Scalars = {}
    if heads := [losses.own for losses in (rows.heads, rows.audit) if losses is not None]:
        for name in ("hit_TMB", "bits_TMB", "margin_TMB"):
            of_draws[name] = torch.cat([getattr(losses, name).detach() for losses in heads], dim=1)
    ledger.record(
        batch.index,
        batch.targets,
        rows.class_loss_B,
        rows.class_hit_B,
        **of_draws,
        predicted_B=rows.predicted_B,
        confidence_B=rows.confidence_B,
        counts_only_B=None if batch.is_first is None else ~batch.is_first,
        may_have_padding=batch.may_have_padding,
    )
    if batch.skipped:
        ledger.skip(batch.skipped_index.to(batch.index.device, non_blocking=True))


@dataclass(frozen=True)
class TrainStep:
    """The training step, callable with normalised images and this rank's batch, both on the device."""

    learner: Learner
    table_MN: Tensor
    ledger: Ledger
    routes: Routes
    config: Config
    rank: int
    timed: Callable[[], AbstractContextManager[object]] = nullcontext
    """Measures forward passes: what a rank does before it meets the others."""
    heads_stream: SideStream = field(default_factory=SideStream)
    """Where heads run that need nothing of the backbone's backward pass, nor it of them: beside it."""

    def __call__(self, batch: Batch, num_updates: int, term_weights: TermWeights) -> dict[str, Tensor]:
        """Take optimizer step number `num_updates` (from 0) with λ and μ as `term_weights` has them.

        Returns:
            This rank's share of each figure of the step, as 0-d tensors on the device: their mean over the ranks is
            the figure of the global batch.
        """
        num_parts = self.config.accumulate
        seeds = [stream_seed(self.config.seed, "dropout", num_updates, self.rank, part) for part in range(num_parts)]
        parts = list(zip(batch.chunks(num_parts), seeds, strict=True))
        learner = self.learner
        found: list[tuple[_Scalars, _Scalars]] = []
        learner.statistics.keep()
        if num_parts > 1:
            with learner.without_sync():
                found = [self._forward_backward(*part, term_weights) for part in parts[:-1]]
        found.append(self._forward_backward(*parts[-1], term_weights))
        shares, losses = map(_sum_by_name, zip(*found, strict=True))
        verdicts = judge(learner.trained_parts, losses, self.routes.world_size)
        norms = learner.update(num_updates, verdicts)
        for name, verdict in verdicts.items():
            shares |= {f"{name}_grad_norm": norms[name], f"{name}_nonfinite": verdict.nonfinite.float()}
        return shares | {"image_rms": _root_mean_square(batch)} | learner.loss_scales

    def _forward_backward(self, batch: Batch, seed: int, term_weights: TermWeights) -> tuple[_Scalars, _Scalars]:
        """Return this rank's share of the figures, and of the loss that trains each part, of a micro-batch."""
        # One seed a micro-batch instead of a saved generator: dropout continues exactly after a resume at any step, and
        # what the heads drop, after the backbone's forward pass, shifts nothing of the backbone's.
        _seed_generators(batch.images.device, seed)
        begin_compiled_pass(self.config.runtime)
        apart = self.heads_stream if self._heads_are_apart else SideStream()
        with self.timed(), autocast(batch.images.device, self.config.precision):
            rows = forward_rows(self.learner.wrapped, batch, self.table_MN, self.routes, apart)
        valid_B = _valid_rows(batch)
        scale = self.routes.world_size / batch.num_global_rows
        total = _without_padding(rows.trained_loss_B, valid_B).sum() * scale
        shares = {"class_loss": total.detach(), "top1": _without_padding(rows.class_hit_B, valid_B).sum() * scale}
        shares["skipped"] = total.new_full((), len(batch.skipped) * scale)
        trains = {"backbone": total}
        with apart.work(*(() if valid_B is None else (valid_B,))):
            for part, losses, weights in (("heads", rows.heads, term_weights), ("audit", rows.audit, _UNWEIGHTED)):
                if losses is None:
                    continue
                terms = combine_losses(losses, valid_B, batch.num_global_rows, self.routes.world_size, weights)
                trains[part] = terms.heads
                if not apart.exists:
                    trains["backbone"] = trains["backbone"] + terms.backbone
                shares |= _figures_of_heads("audit_" * (part == "audit"), terms, losses.own, valid_B, scale)
            if apart.exists and len(trains) > 1:
                self.learner.scaled({name: loss for name, loss in trains.items() if name != "backbone"}).backward()
        if total.requires_grad or not apart.exists:
            self.learner.scaled({"backbone": total} if apart.exists else trains).backward()
        apart.join()
        record_rows(self.ledger, batch, rows)
        return shares, {name: loss.detach() for name, loss in trains.items()}

    @property
    def _heads_are_apart(self) -> bool:
        """Whether no gradient of theirs reaches the features, whose memory is no CUDA graph's."""
        has_graphs = isinstance(self.config.runtime.compile, str)
        return self.routes.terms.regularizer is None and not self.routes.terms.joint and not has_graphs


def _figures_of_heads(
    prefix: str, terms: CombinedLoss, losses: HeadLosses, valid_B: Tensor | None, scale: float
) -> dict[str, Tensor]:
    """Return the terms of heads, and the accuracy of their first and last tap."""
    hits_TM = _without_padding(losses.hit_TMB, valid_B).sum(-1) * scale
    accuracies = {f"{prefix}rla_first": hits_TM[0].mean(), f"{prefix}rla_last": hits_TM[-1].mean()}
    return {prefix + name: value for name, value in terms.scalars.items()} | accuracies


def _root_mean_square(batch: Batch) -> Tensor:
    """Return the root mean square of a batch's images, float32 (), padding rows left out; 0 where there are no others.

    Networks that normalise their inputs hide what is wrong with these.
    """
    valid_B = _valid_rows(batch)
    # image by image: torch's norm of so many numbers at once is not right
    norm_B = torch.linalg.vector_norm(batch.images, dim=(1, 2, 3), dtype=torch.float32)
    norm = torch.linalg.vector_norm(_without_padding(norm_B, valid_B))
    if valid_B is None:
        mean = norm / batch.images.numel() ** 0.5
    else:
        mean = norm / (valid_B.sum().clamp(min=1) * batch.images[0].numel()).sqrt()
    return torch.nan_to_num(mean, nan=math.nan, posinf=_LARGEST)


def _valid_rows(batch: Batch) -> Tensor | None:
    """Return which rows are no padding, bool (B,); None where the host knows that all are."""
    return batch.index >= 0 if batch.may_have_padding else None


def _without_padding(values_B: Tensor, valid_B: Tensor | None) -> Tensor:
    """Return values (…, B) with 0 or False for padding."""
    return values_B if valid_B is None else torch.where(valid_B, values_B, 0)


def _sum_by_name(each: Sequence[_Scalars]) -> _Scalars:
    if len(each) == 1:
        return each[0]
    return {name: sum((other[name] for other in each[1:]), each[0][name]) for name in each[0]}


def _seed_generators(device: torch.device, seed: int) -> None:
    """Seed the generators that a forward pass draws from: the CPU's and the device's.

    `torch.manual_seed` also asks for every other kind of device, and takes a stack trace for each that is not in use.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
