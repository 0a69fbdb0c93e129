"""The parts of a configuration that say how the weights move, beside the optimizers, and when they have moved enough."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LossScaleConfig:
    """The factor that keeps fp16's small gradients from vanishing; network, heads and audit heads have one each."""

    initial: float = 65536.0
    """Where it starts (precision fp16). Each step whose gradients overflow is left out and halves it."""
    growth_every: int = 2000
    """Steps in a row without overflow after which it doubles (precision fp16)."""
