"""Heads that every rank holds whole, as a trained part: their gradients are averaged over the ranks as they are made.

DDP would let the gradients of all heads be made first, beside its buckets, and copy them there. Here each head's gradient is
made on its own, in the memory that the optimizer reads, and travels while the next head's is made and the network's backward
pass goes on. What is small (biases, hidden layers, heads of few labels) travels in one message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlpheads.engine.learner.parts import TrainedPart
from rlpheads.kernels.head_gradient import HeadGradient
from rlpheads.memorization.heads.head_modules import HeadModules


class TravellingGradients:
    """Takes heads' gradients in the backward pass and sums them over the ranks, in the same order at every rank."""

    def __init__(self) -> None:
        self._stays = False
        self._underway: list[tuple[Tensor, Any]] = []

    @contextmanager
    def staying(self) -> Iterator[None]:
        """Keep gradients at this rank, for all but the last micro-batch."""
        self._stays = True
        try:
            yield
        finally:
            self._stays = False

    def __call__(self, gradient: HeadGradient) -> None:
        """Make a head's gradient, and send that of its weight on its way."""
        for parameter, made in zip(gradient.head[:2], gradient.make(), strict=True):
            if parameter is not None and made is not None:
                parameter.grad = made if parameter.grad is None else parameter.grad.add_(made)
        if not self._stays and gradient.weight.grad is not None:
            self._underway.append((gradient.weight, dist.all_reduce(gradient.weight.grad, async_op=True)))

    def arrive(self, parameters: Sequence[Tensor]) -> None:
        """Sum what has not travelled yet, in one message, and wait for what has."""
        travelling = {id(weight) for weight, _ in self._underway}
        small = [each.grad for each in parameters if each.grad is not None and id(each) not in travelling]
        packed = torch.cat([gradient.flatten() for gradient in small])
        dist.all_reduce(packed)
        for gradient, summed in zip(small, packed.split([each.numel() for each in small]), strict=True):
            gradient.copy_(summed.view_as(gradient))
        for _, work in self._underway:
            work.wait()
        self._underway.clear()


@dataclass(frozen=True, kw_only=True)
class AveragedPart(TrainedPart):
    """Heads without a wrapper, whose gradients are averaged as they are made.

    `travelling`: the gradients; `world_size`: the ranks.
    """

    travelling: TravellingGradients
    world_size: int

    def without_sync(self) -> AbstractContextManager[None]:
        """See `TrainedPart.without_sync`."""
        return self.travelling.staying()

    def scaled(self, loss: Tensor) -> Tensor:
        """See `TrainedPart.scaled`: a share of the loss, so that the sum of the ranks' gradients is their average."""
        return super().scaled(loss / self.world_size)

    def gradient_norm(self) -> Tensor:
        """See `TrainedPart.gradient_norm`: once the gradients of all ranks are there."""
        self.travelling.arrive(self.weights)
        return super().gradient_norm()


def average_part(part: TrainedPart, world_size: int) -> AveragedPart:
    """Return the part, which has no wrapper, as one whose gradients are averaged over the ranks."""
    assert isinstance(part.module, HeadModules)
    part.module.consumer = travelling = TravellingGradients()
    settings = {field.name: getattr(part, field.name) for field in fields(part)}
    return AveragedPart(**settings, travelling=travelling, world_size=world_size)
