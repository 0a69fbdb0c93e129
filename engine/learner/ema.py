"""Exponential moving average (EMA) of the backbone's weights: timm's, with its step count given by the caller."""

from __future__ import annotations

from dataclasses import dataclass

from timm.utils import ModelEmaV3
from torch import nn

from rlpheads.engine.config.learning import AverageConfig


@dataclass(frozen=True)
class Average:
    """A moving average of a model's weights and buffers.

    Its only state is the averaged model: the decay follows from the number of the optimizer step, so that a resumed run
    goes on exactly.
    """

    ema: ModelEmaV3
    every: int = 1

    @property
    def module(self) -> nn.Module:
        """The averaged model, in evaluation mode."""
        return self.ema.module

    def update(self, model: nn.Module, num_updates: int) -> None:
        """Take in the weights after optimizer step number `num_updates` (from 0), if it is one of every `every`.

        The first two are copied, as timm does: an average that began with the weights before training would keep them.
        """
        if (num_updates + 1) % self.every == 0:
            self.ema.update(model, step=num_updates // self.every)


def build_average(model: nn.Module, decay: float, config: AverageConfig) -> Average:
    """Begin an average with a copy of the model, on the model's device."""
    ema = ModelEmaV3(
        model,
        decay=decay,
        use_warmup=config.warmup,
        warmup_gamma=config.warmup_gamma,
        warmup_power=config.warmup_power,
        foreach=config.foreach,
    )
    return Average(ema, config.every)
