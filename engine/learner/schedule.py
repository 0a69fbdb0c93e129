"""Learning-rate schedules: timm's schedulers, updated at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from rlpheads.engine.config.learning import ScheduleConfig


@dataclass(frozen=True)
class Span:
    """The length of a schedule, and the global batch of its steps."""

    epochs: int
    steps_per_epoch: int
    batch_size: int = 1


def build_scheduler(optimizer: torch.optim.Optimizer, lr: float, schedule: ScheduleConfig, span: Span) -> Scheduler:
    """Build the schedule of an optimizer whose peak learning rate is `lr`."""
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
