"""The parts of a configuration that say how the weights move, beside the optimizers, and when they have moved enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LossScaleConfig:
    """The factor that keeps fp16's small gradients from vanishing; network, heads and audit heads have one each."""

    initial: float = 65536.0
    """Where it starts (precision fp16). Each step whose gradients overflow is left out and halves it."""
    growth_every: int = 2000
    """Steps in a row without overflow after which it doubles (precision fp16)."""


@dataclass(frozen=True)
class AverageConfig:
    """How the moving average of the weights follows them (model.ema_decay switches it on)."""

    every: int = 1
    """Optimizer steps between its updates; the decay is that of one update."""
    warmup: bool = False
    """Let the decay rise to model.ema_decay: after t updates it is 1 - (1 + t / warmup_gamma) ^ -warmup_power."""
    warmup_gamma: float = 1.0
    """The larger, the slower the decay rises (warmup)."""
    warmup_power: float = 2 / 3
    """The larger, the faster: with 2/3 it is 0.999 after 31,600 updates, with 3/4 after 10,000 (warmup)."""
    foreach: bool = True
    """Update all tensors in one call; false: one by one, which takes less memory. May change the last bits."""


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """When a run ends before its epochs are over. The schedules still span all epochs."""

    patience: int | None = None
    """Evaluations in a row without a better figure after which the run is done; null: never."""
    metric: Literal["eval_top1", "eval_loss", "eval_ema_top1", "eval_ema_loss"] = "eval_top1"
    """The figure, on the held-out images; eval_ema_...: of the averaged weights."""
    min_delta: float = 0.0
    """It is better only where it beats the best before by more than this."""
