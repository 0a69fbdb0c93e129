"""Heads that every rank holds whole, as a trained part: each rank steps its range of every large head's classes.

DDP would let the gradients of all heads be made first, beside its buckets, and copy them there. Here each head's gradient is
made on its own and travels while the next head's is made and the network's backward pass goes on: every rank gets the sum over
the ranks for its own range of the classes, steps that range of the weight, with optimizer states of no more, and sends what it
stepped to the others (stage 1 of ZeRO, Rajbhandari et al. 2020), as many bytes as an all-reduce. Gradients are averaged whole
for optimizers and clipping that look at whole matrices. What is small (biases, hidden layers, heads of few labels) travels in
one message, and every rank steps it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlpheads.engine.learner.optimizer import is_elementwise, prepare_to_skip
from rlpheads.engine.learner.parts import TrainedPart
from rlpheads.engine.learner.sharded_part import RangePart
from rlpheads.kernels.head_gradient import HeadGradient
from rlpheads.memorization.heads.class_shards import ClassShards
from rlpheads.memorization.heads.head_modules import HeadModules

MIN_RANGE_NUMBERS = 2**21
"""Numbers of a weight from which ranks step ranges of it. A step of 12 heads of so many takes 0.94 of the processor time that
it takes with gradients averaged whole, of half as many 1.07 (two ranks, D = 768): there are more messages."""
MAX_UNDERWAY = 2
"""Gradients of such weights that travel at once; each is dropped when the sum of its range is there."""


class TravellingGradients:
    """Takes heads' gradients in the backward pass and sums them over the ranks, in the same order at every rank.

    Args:
        shards: the ranks.
        ranges: of each weight of which this rank steps a range, that range, which gets the sum as its gradient.
    """

    def __init__(self, shards: ClassShards, ranges: Mapping[Any, nn.Parameter]) -> None:
        self._shards = shards
        self._ranges = ranges
        self._stays = False
        self._whole: list[tuple[Tensor, Callable[[], Any]]] = []
        self._underway: deque[tuple[nn.Parameter, Callable[[], Tensor]]] = deque()

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
            self._send(gradient.weight)

    def arrive(self, parameters: Sequence[Tensor]) -> None:
        """Sum what has not travelled yet, what is small in one message, and wait for all."""
        for weight in self._ranges:
            if weight.grad is not None:
                self._send(weight)
        travelling = {id(weight) for weight, _ in self._whole}
        small = [each.grad for each in parameters if each.grad is not None and id(each) not in travelling]
        if small:
            packed = torch.cat([gradient.flatten() for gradient in small])
            self._shards.sum_over_ranks(packed)
            for gradient, summed in zip(small, packed.split([each.numel() for each in small]), strict=True):
                gradient.copy_(summed.view_as(gradient))
        for _, end in self._whole:
            end()
        self._whole = []
        while self._underway:
            self._end_first()

    def _send(self, weight: Tensor) -> None:
        assert weight.grad is not None
        if weight not in self._ranges:
            self._whole.append((weight, dist.all_reduce(weight.grad, async_op=True).wait))
            return
        while len(self._underway) >= MAX_UNDERWAY:
            self._end_first()
        self._underway.append((self._ranges[weight], self._shards.begin_range_sum(weight.grad)))
        weight.grad = None

    def _end_first(self) -> None:
        own, end = self._underway.popleft()
        own.grad = end()


@dataclass(frozen=True, kw_only=True)
class AveragedPart(RangePart):
    """Heads without a wrapper, whose gradients are averaged as they are made.

    `travelling`: the gradients; `gathered`: the weights whose ranges are stepped, with this rank's range of each.
    """

    travelling: TravellingGradients
    gathered: Mapping[nn.Parameter, nn.Parameter]

    def without_sync(self) -> AbstractContextManager[None]:
        """See `TrainedPart.without_sync`."""
        return self.travelling.staying()

    def scaled(self, loss: Tensor) -> Tensor:
        """See `TrainedPart.scaled`: a share of the loss, so that the sum of the ranks' gradients is their average."""
        return super().scaled(loss / self.shards.world_size)

    @cached_property
    def stepped(self) -> tuple[nn.Parameter, ...]:
        """See `TrainedPart.stepped`: ranges in place of the weights that are gathered."""
        return tuple(self.gathered.get(weight, weight) for weight in self.weights)

    def to_sum(self) -> Tensor | None:
        """See `TrainedPart.to_sum`: nothing where all gradients are whole."""
        return super().to_sum() if self.gathered else None

    def gradient_norm(self) -> Tensor:
        """See `TrainedPart.gradient_norm`: once the gradients of all ranks are there."""
        if self.gathered:
            return super().gradient_norm()
        self.sum_gradients()
        return TrainedPart.gradient_norm(self)

    def sum_gradients(self) -> None:
        """See `RangePart.sum_gradients`."""
        self.travelling.arrive(self.weights)

    def optimizer_state(self) -> dict[str, Any]:
        """See `RangePart.optimizer_state`."""
        with self._ranges_in_place():
            return super().optimizer_state()

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """See `RangePart.load_optimizer_state`."""
        with self._ranges_in_place():
            super().load_optimizer_state(state)

    def _step(self, left_out: Tensor | None, divisor: Tensor | None) -> None:
        """See `TrainedPart._step`; then every rank sends what it stepped."""
        super()._step(left_out, divisor)
        for end in [self.shards.begin_range_gather(weight.detach()) for weight in self.gathered]:
            end()
        # neither a message nor a fused step tells those who keep copies of a version of a weight
        torch.autograd.graph.increment_version(self.gathered)

    @contextmanager
    def _ranges_in_place(self) -> Iterator[None]:
        """Let the module hold the ranges under the names of the weights, as the optimizer does."""
        assert isinstance(self.module, HeadModules)
        holders = {head.weight: head for head in self.module.heads_at(range(len(self.module.tap_dims)))}
        try:
            for weight, own in self.gathered.items():
                holders[weight].weight = own
            yield
        finally:
            for weight in self.gathered:
                holders[weight].weight = weight


def average_part(part: TrainedPart, shards: ClassShards) -> AveragedPart:
    """Return the part, which has no wrapper and took no step yet, as one whose gradients are averaged over the ranks."""
    heads = part.module
    assert isinstance(heads, HeadModules)
    gathered = _own_ranges(heads, shards) if is_elementwise(part.optim) else {}
    _exchange_parameters(part.optimizer, gathered)
    heads.consumer = travelling = TravellingGradients(shards, gathered)
    settings = {field.name: getattr(part, field.name) for field in fields(part)}
    names = {weight: name for name, weight in heads.named_parameters()}
    ranges = {names[weight]: own for weight, own in gathered.items()}
    return AveragedPart(**settings, shards=shards, ranges=ranges, travelling=travelling, gathered=gathered)


def is_stepped_in_ranges(numbers: int, num_classes: int, world_size: int) -> bool:
    """Whether a weight of so many numbers, over so many classes, is large enough to be, and every rank has some of them."""
    return numbers >= MIN_RANGE_NUMBERS and not ClassShards(0, world_size).has_empty_range(num_classes)


def _own_ranges(heads: HeadModules, shards: ClassShards) -> dict[nn.Parameter, nn.Parameter]:
    """Return this rank's range of each large weight that is trained, on the same memory."""
    weights = [head.weight for head in heads.heads_at(range(len(heads.tap_dims)))]
    return {
        weight: nn.Parameter(shards.range_of(weight.detach()))
        for weight in weights
        if weight.requires_grad and is_stepped_in_ranges(weight.numel(), heads.num_classes, shards.world_size)
    }


def _exchange_parameters(optimizer: torch.optim.Optimizer, replaced: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Let an optimizer that has taken no step hold other parameters."""
    for group in optimizer.param_groups:
        group["params"] = [replaced.get(each, each) for each in group["params"]]
    optimizer.state.clear()
    prepare_to_skip(optimizer)
