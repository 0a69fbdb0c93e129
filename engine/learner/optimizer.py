"""Optimizers and learning-rate schedules: timm's factories, one pair for each part that is trained on its own."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rlpheads.engine.config.learning import LossScaleConfig, OptimConfig, ScheduleConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.learner.loss_scale import LossScale, prepare_to_skip

FUSED = frozenset({"adam", "adamw", "sgd", "momentum"})
"""timm names whose torch optimizer has a fused step: one pass over memory and no temporary the size of a parameter. Only
these leave a step with fp16's overflows out by themselves; for others the host reads whether there were any."""


@dataclass(frozen=True)
class TrainedPart:
    """A module with an optimizer, a schedule, a clipping norm and, for fp16, a loss scale of its own.

    Backbone and heads are two such parts. Nothing couples them: a shared global norm, for one, would let the heads'
    gradients scale the backbone's.
    """

    module: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    optim: OptimConfig
    loss_scale: LossScale | None = None

    def train(self, mode: bool) -> None:
        """Switch between training and evaluation mode."""
        self.wrapped.train(mode)

    def without_sync(self) -> AbstractContextManager[None]:
        """Return the context in which gradients stay local, for all but the last micro-batch."""
        if isinstance(self.wrapped, DistributedDataParallel):
            return self.wrapped.no_sync()
        return nullcontext()

    def scaled(self, loss: Tensor) -> Tensor:
        """Return what is to be back-propagated for a loss that trains this part."""
        return loss if self.loss_scale is None else self.loss_scale.scaled(loss)

    def update(self, num_updates: int) -> None:
        """Clip, take optimizer step number `num_updates` (from 0) at its scheduled rate, and drop the gradients.

        A step that fp16's overflows leave out counts in the schedule like any other.
        """
        self.scheduler.step_update(num_updates)
        if self.loss_scale is not None:
            self.loss_scale.step(self.optimizer, self._clip)
        else:
            self._clip()
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _clip(self) -> None:
        if self.optim.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.optim.clip_norm)
        if self.optim.clip_value is not None:
            torch.nn.utils.clip_grad_value_(self.module.parameters(), self.optim.clip_value)
        if self.optim.clip_agc is not None:
            adaptive_clip_grad(self.module.parameters(), self.optim.clip_agc)

    @property
    def lr(self) -> float:
        """Learning rate of the last step; of the classifier, where layers have their own."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)


@dataclass(frozen=True)
class FrozenPart:
    """A module that is run and never changed: always in evaluation mode, without gradients, optimizer and wrapper."""

    module: nn.Module
    lr: float = 0.0

    def __post_init__(self) -> None:
        self.module.requires_grad_(False)

    @property
    def wrapped(self) -> nn.Module:
        """The module itself."""
        return self.module

    def train(self, mode: bool) -> None:
        """Stay in evaluation mode."""
        del mode
        self.module.eval()

    def without_sync(self) -> AbstractContextManager[None]:
        """Return a context: there is nothing to reduce."""
        return nullcontext()

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss itself: none of it trains this part."""
        return loss

    def update(self, num_updates: int) -> None:
        """Change nothing."""


@dataclass(frozen=True)
class Span:
    """The length of a schedule, and the global batch of its steps."""

    epochs: int
    steps_per_epoch: int
    batch_size: int = 1


def build_part(module: nn.Module, optim: OptimConfig, schedule: ScheduleConfig, span: Span, ddp: bool) -> TrainedPart:
    """Give `module` (already on its device) its optimizer and schedule, and DDP where there are several ranks.

    DDP's buckets are the gradients themselves (`gradient_as_bucket_view`): for heads of 100,000 classes a second copy
    would be as large as the heads.
    """
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True) if ddp else module
    lr = scaled_lr(optim, span.batch_size)
    optimizer = create_optimizer_v2(
        # the network itself, which tells timm its layers, and what of it must not decay (position embeddings, class token)
        getattr(module, "backbone", module),
        opt=optim.name,
        lr=lr,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        layer_decay=optim.layer_decay,
        **({"fused": True} if optim.name in FUSED else {}),
        **_betas(optim),
    )
    return TrainedPart(module, wrapped, optimizer, _build_scheduler(optimizer, lr, schedule, span), optim)


def with_loss_scale(part: TrainedPart, config: LossScaleConfig, device: torch.device) -> TrainedPart:
    """Give a part that has taken no step yet a loss scale, for fp16."""
    prepare_to_skip(part.optimizer)
    return replace(part, loss_scale=LossScale(config, device))


def host_reads(config: Config) -> tuple[str, ...]:
    """Say which optimizers make the host wait for the device in every step."""
    parts = [] if config.model.frozen else [("optim", config.optim)]
    parts += [] if config.heads.taps == "none" else [("heads.optim", config.heads.optim)]
    return tuple(
        f"{key}.name {optim.name} cannot leave a step out by itself: with precision fp16 the host waits in every step for "
        f"whether gradients overflowed. {', '.join(sorted(FUSED))} can"
        for key, optim in parts
        if config.precision == "fp16" and optim.name not in FUSED
    )


def scaled_lr(optim: OptimConfig, batch_size: int) -> float:
    """Return the peak learning rate for a global batch."""
    if optim.base_batch_size is None:
        return optim.lr
    ratio = batch_size / optim.base_batch_size
    return optim.lr * (ratio if optim.batch_scaling == "linear" else ratio**0.5)


def _betas(optim: OptimConfig) -> dict[str, tuple[float, ...]]:
    """Return the optimizer's own betas with the momentum as the first, where it has betas."""
    info = get_optimizer_info(optim.name)
    if not info.has_betas:
        return {}
    if isinstance(info.opt_class, str):  # imported only when it is built (apex)
        return {"betas": (optim.momentum, 0.999)}
    default = inspect.signature(info.opt_class).parameters["betas"].default
    return {"betas": (optim.momentum, *default[1:])}


def _build_scheduler(optimizer: torch.optim.Optimizer, lr: float, schedule: ScheduleConfig, span: Span) -> Scheduler:
    warmup_steps = schedule.warmup_epochs * span.steps_per_epoch
    falls = schedule.name in ("step", "multistep")
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="poly" if schedule.name == "linear" else schedule.name,
        num_epochs=(span.epochs - schedule.cooldown_epochs) / schedule.cycles,
        decay_epochs=schedule.decay_every,
        # timm lets the rate fall where the *next* step passes a milestone: half a step later is the step itself
        decay_milestones=[epoch + 0.5 / span.steps_per_epoch for epoch in schedule.milestones],
        decay_rate=schedule.decay_rate if falls else 1.0,  # for timm's poly, the power
        min_lr=schedule.min_lr_fraction * lr,
        warmup_epochs=schedule.warmup_epochs,
        warmup_lr=lr / max(1.0, warmup_steps),  # from zero, the first step would do nothing
        cycle_decay=schedule.cycle_decay,
        cycle_limit=schedule.cycles,
        step_on_epochs=False,
        updates_per_epoch=span.steps_per_epoch,
    )
    return scheduler
