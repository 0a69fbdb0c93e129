"""What is trained on its own: backbone, heads and audit heads, each with an optimizer, a schedule, clipping and loss scale."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.parallel import DistributedDataParallel

from rlpheads.engine.config.learning import LossScaleConfig, OptimConfig, ScheduleConfig
from rlpheads.engine.learner.loss_scale import LossScale
from rlpheads.engine.learner.optimizer import (
    build_optimizer,
    can_skip_on_device,
    prepare_to_skip,
    scaled_lr,
    step_unless,
)
from rlpheads.engine.learner.schedule import Span, build_scheduler


@dataclass(frozen=True)
class TrainedPart:
    """A module with an optimizer, a schedule, a clipping norm and, for fp16, a loss scale of its own.

    Backbone and heads are two such parts. Nothing couples them: a shared global norm, for one, would let the heads'
    gradients scale the backbone's.

    `waits`: an optimizer without a fused step lets the host wait for whether its update is to be left out, rather than
    take it in any case.
    """

    module: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    optim: OptimConfig
    loss_scale: LossScale | None = None
    waits: bool = False

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

    def replicated_parameters(self) -> list[nn.Parameter]:
        """Return the weights that every rank holds alike."""
        return list(self.module.parameters())

    def gradient_norm(self) -> Tensor:
        """Take the loss scale out of the gradients and return their global norm, before clipping: float32 ()."""
        if self.loss_scale is not None:
            self.loss_scale.unscale(self.optimizer)
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def update(self, num_updates: int, norm: Tensor, left_out: Tensor | None = None) -> None:
        """Clip, take optimizer step number `num_updates` (from 0) at its scheduled rate, and drop the gradients.

        A step that is left out, or that fp16's overflows leave out, counts in the schedule like any other.

        Args:
            num_updates: optimizer steps taken.
            norm: what `gradient_norm` returned.
            left_out: whether weights and optimizer stay as they are, bool () on the device; None: they do not.
        """
        self.scheduler.step_update(num_updates)
        self._clip(norm)
        if self.loss_scale is not None:
            self.loss_scale.step(self.optimizer)
        elif left_out is None or not (self.waits or can_skip_on_device(self.optimizer)):
            self.optimizer.step()
        else:
            step_unless(left_out, self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state, by reference, under the names of the parameters."""
        return get_optimizer_state_dict(self.module, self.optimizer)

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Take up what `optimizer_state` returned."""
        set_optimizer_state_dict(self.module, self.optimizer, state)

    def _clip(self, norm: Tensor) -> None:
        if self.optim.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.module.parameters(), self.optim.clip_norm, norm)
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


def build_part(module: nn.Module, optim: OptimConfig, schedule: ScheduleConfig, span: Span, ddp: bool) -> TrainedPart:
    """Give `module` (already on its device) its optimizer and schedule, and DDP where there are several ranks.

    DDP's buckets are the gradients themselves (`gradient_as_bucket_view`): for heads of 100,000 classes a second copy
    would be as large as the heads.
    """
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True) if ddp else module
    lr = scaled_lr(optim, span.batch_size)
    optimizer = build_optimizer(module, optim, lr)
    prepare_to_skip(optimizer)
    return TrainedPart(module, wrapped, optimizer, build_scheduler(optimizer, lr, schedule, span), optim)


def with_loss_scale(part: TrainedPart, config: LossScaleConfig, device: torch.device) -> TrainedPart:
    """Give a part a loss scale, for fp16."""
    return replace(part, loss_scale=LossScale(config, device))
