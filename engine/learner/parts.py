"""What is trained on its own: backbone, heads and audit heads, each with an optimizer, a schedule, clipping and loss scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rlpheads.engine.config.learning import LossScaleConfig, OptimConfig, ScheduleConfig
from rlpheads.engine.learner.loss_scale import LossScale
from rlpheads.engine.learner.optimizer import (
    build_optimizer,
    can_skip_on_device,
    prepare_to_skip,
    scaled_lr,
    stepper_of,
)
from rlpheads.engine.learner.pending_update import PendingUpdate
from rlpheads.engine.learner.schedule import Span, build_scheduler
from rlpheads.kernels.row_norms import LARGE, row_norms
from rlpheads.memorization.heads.head_modules import HeadModules


@dataclass(frozen=True)
class TrainedPart:
    """A module with an optimizer, a schedule, a clipping norm and, for fp16, a loss scale of its own.

    Backbone and heads are two such parts. Nothing couples them: a shared global norm, for one, would let the heads'
    gradients scale the backbone's.

    `pending`: what the backward pass leaves of gradients that the update makes; None: they are all in `.grad`.

    `waits`: an optimizer without a fused step lets the host wait for whether its update is to be left out, rather than
    take it in any case.
    """

    module: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    optim: OptimConfig
    loss_scale: LossScale | None = None
    pending: PendingUpdate | None = None
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

    @cached_property
    def weights(self) -> tuple[nn.Parameter, ...]:
        """The module's weights, found once: looking through a deep network takes longer than a step's small operations."""
        return tuple(self.module.parameters())

    @property
    def stepped(self) -> tuple[nn.Parameter, ...]:
        """What the optimizer steps, where all gradients of an update are."""
        return self.weights

    @cached_property
    def _take_step(self) -> Callable[[Tensor | None, Tensor | None], None]:
        return stepper_of(self.optimizer)

    def replicated_parameters(self) -> list[nn.Parameter]:
        """Return the weights that every rank holds alike."""
        return list(self.weights)

    @property
    def finds_norm_late(self) -> bool:
        """Whether nothing depends on the norm of pending gradients, so that it is found in the pass of the update."""
        return self.pending is not None and self.optim.clip_norm is None and self.loss_scale is None

    def to_sum(self) -> Tensor | None:
        """Begin what `gradient_norm` does: return numbers that the ranks must sum first, float32 (F,); None: there are none."""
        return None

    def norm_from(self, summed: Tensor) -> Tensor:
        """End what `to_sum` began, with the sums over the ranks: return what `gradient_norm` returns."""
        raise NotImplementedError("this part's norm needs no numbers of other ranks")

    def gradient_norm(self) -> Tensor:
        """Return the global norm of the gradients, loss scale and clipping left out: float32 ().

        Where that `finds_norm_late`, a bound of it, which is finite if and only if the norm is.
        """
        if self.finds_norm_late:
            assert self.pending is not None
            return total_norm(self.stepped, [bound.square() for bound in self.pending.norm_bounds()])
        return self.without_scale(total_norm(self.stepped, self.survey_pending()))

    def update(self, num_updates: int, norm: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Clip, take optimizer step number `num_updates` (from 0) at its scheduled rate, and drop the gradients.

        A step that is left out, or that fp16's overflows leave out, counts in the schedule like any other.

        Args:
            num_updates: optimizer steps taken.
            norm: what `gradient_norm` returned.
            left_out: whether weights and optimizer stay as they are, bool () on the device; None: they do not.

        Returns:
            The norm of the gradients, before clipping: float32 ().
        """
        self.scheduler.step_update(num_updates)
        if self.finds_norm_late:
            return self._update_late(left_out)
        divisor, skipped = self._clip(norm), self._skipped(norm, left_out)
        factor = None if self.pending is None else self._pending_factor(norm)
        if self.loss_scale is not None:
            self.loss_scale.update(is_nonfinite(norm))
        self._step(skipped, divisor)
        self._drop_gradients()
        if self.pending is not None:
            self.pending.apply(self.optimizer, factor, skipped)
        return norm

    def _update_late(self, left_out: Tensor | None) -> Tensor:
        """Step the weights whose gradients are pending, then what is small; return the norm."""
        assert self.pending is not None
        skipped = self._skipped(None, left_out)
        kept = [(parameter, parameter.grad) for parameter in self.stepped if parameter.grad is not None]
        self._drop_gradients()
        squared = self.pending.apply(self.optimizer, None, skipped)
        for parameter, gradient in kept:
            parameter.grad = gradient
        norm = total_norm(self.stepped, squared)
        self._step(skipped, None)
        self._drop_gradients()
        return norm

    def _step(self, left_out: Tensor | None, divisor: Tensor | None) -> None:
        """Take the optimizer's step by all gradients that are there; see `rlpheads.engine.learner.optimizer.take_step`."""
        self._take_step(left_out, divisor)

    def _drop_gradients(self) -> None:
        for parameter in self.stepped:
            parameter.grad = None

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state, by reference, under the names of the parameters."""
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict  # no step needs it

        return get_optimizer_state_dict(self.module, self.optimizer)

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Take up what `optimizer_state` returned."""
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        set_optimizer_state_dict(self.module, self.optimizer, state)

    def survey_pending(self) -> list[Tensor]:
        """Return the squared norms of the gradients that are still to be made."""
        return [] if self.pending is None else self.pending.survey()

    def without_scale(self, norm: Tensor) -> Tensor:
        """Return a norm of gradients that carry the loss scale as that of those without."""
        return norm if self.loss_scale is None else norm / self.loss_scale.factor

    def _pending_factor(self, norm: Tensor) -> Tensor:
        """Return by what gradients are multiplied that are still to be made: clipping's factor over the loss scale."""
        factor = torch.ones_like(norm)
        if self.optim.clip_norm is not None:
            factor = (self.optim.clip_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grads_with_norm_
        return factor if self.loss_scale is None else factor / self.loss_scale.factor

    def _skipped(self, norm: Tensor | None, left_out: Tensor | None) -> Tensor | None:
        """Return whether the optimizer leaves its step out, bool (), None where it takes it in any case."""
        if self.loss_scale is not None:
            assert norm is not None
            overflowed = is_nonfinite(norm)
            return overflowed if left_out is None else overflowed | left_out
        return left_out if self.waits or can_skip_on_device(self.optimizer) else None

    def _clip(self, norm: Tensor) -> Tensor | None:
        """Take the loss scale out of the gradients and clip them.

        Where a fused step does both in its own pass, return what it is to divide them by; None: 1.
        """
        scale, optim = self.loss_scale, self.optim
        if can_skip_on_device(self.optimizer) and optim.clip_value is None and optim.clip_agc is None:
            factor = None if scale is None else scale.factor.clone()
            if optim.clip_norm is None:
                return factor
            excess = ((norm + 1e-6) / optim.clip_norm).clamp(min=1.0)
            return excess if factor is None else excess * factor
        if scale is not None:
            torch._foreach_div_([each.grad for each in self.stepped if each.grad is not None], scale.factor)
        if optim.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.stepped, optim.clip_norm, norm)
        if optim.clip_value is not None:
            torch.nn.utils.clip_grad_value_(self.stepped, optim.clip_value)
        if optim.clip_agc is not None:
            adaptive_clip_grad(self.stepped, optim.clip_agc)
        return None

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


def is_nonfinite(number: Tensor) -> Tensor:
    """Whether a 0-d number is infinite or NaN, bool (): two operations, where `~number.isfinite()` is five."""
    return (number - number) != 0


def total_norm(parameters: Iterable[nn.Parameter], pending: Sequence[Tensor] = ()) -> Tensor:
    """Return the global norm of the parameters' gradients and of those that are pending, given as squared norms: float32 ()."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    gradients = [row_norms(each) if each.nbytes > LARGE and each.is_cpu else each for each in gradients]
    # torch.nn.utils.get_total_norm is this, and looks at the device of every norm
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) if gradients else torch.zeros(())
    if not pending:
        return norm
    return torch.stack([norm.double().square(), *pending]).sum().sqrt().float()


def with_pending_update(part: TrainedPart) -> TrainedPart:
    """Let the heads of a part be stepped where their gradients are made."""
    assert isinstance(part.module, HeadModules)
    part.module.consumer = pending = PendingUpdate()
    return replace(part, pending=pending)


def with_loss_scale(part: TrainedPart, config: LossScaleConfig, device: torch.device) -> TrainedPart:
    """Give a part a loss scale, for fp16."""
    return replace(part, loss_scale=LossScale(config, device))
