"""Heads whose classes the ranks step in ranges, as a trained part: an optimizer over the rank's own range.

Heads that are sharded by class hold no more than that range; those of `rlpheads.engine.learner.averaged_part` are whole.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from rlpheads.engine.learner.parts import TrainedPart, total_norm
from rlpheads.memorization.heads.class_shards import ClassShards, is_dtensor
from rlpheads.memorization.heads.head_modules import HeadModules
from rlpheads.memorization.heads.sharded_heads import ShardedRLPHeads


@dataclass(frozen=True, kw_only=True)
class RangePart(TrainedPart):
    """Heads of which each rank steps a range of the classes, with an optimizer of this rank's range.

    What all ranks must agree on travels in one message: the squared norm of the gradient, which is not finite where fp16
    overflowed anywhere.

    `shards`: whose ranges they are; `ranges`: what the optimizer steps of a range alone, by its name in the module.
    """

    shards: ClassShards
    ranges: Mapping[str, nn.Parameter]

    @abstractmethod
    def sum_gradients(self) -> None:
        """Sum over the ranks what each rank has of its own rows alone."""

    @cached_property
    def stepped_alike(self) -> tuple[nn.Parameter, ...]:
        """What every rank steps alike."""
        of_ranges = set(self.ranges.values())
        return tuple(each for each in self.stepped if each not in of_ranges)

    @property
    def finds_norm_late(self) -> bool:
        """No: the ranks learn of one another's norm and of what is not finite in one message, before the update."""
        return False

    def to_sum(self) -> Tensor | None:
        """See `TrainedPart.to_sum`: the squared norm of this rank's ranges' gradient, finite unless fp16 overflowed."""
        self.sum_gradients()
        norm = total_norm(self.ranges.values(), self.survey_pending())
        return self.without_scale(norm).square()[None]

    def norm_from(self, summed: Tensor) -> Tensor:
        """See `TrainedPart.norm_from`: the norm over the classes of all ranks."""
        alike = self.stepped_alike
        squared = summed[0] + self.without_scale(total_norm(alike)).square() if alike else summed[0]
        return squared.sqrt()

    def gradient_norm(self) -> Tensor:
        """See `TrainedPart.gradient_norm`: the norm over the classes of all ranks, in one message."""
        summed = self.to_sum()
        assert summed is not None
        self.shards.sum_over_ranks(summed)
        return self.norm_from(summed)

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state, what belongs to a range of classes as DTensors on the same memory."""
        assert isinstance(self.module, HeadModules)
        num_classes, state = self.module.num_classes, super().optimizer_state()
        for name in self.ranges.keys() & state["state"].keys():
            state["state"][name] = {
                key: self.shards.as_dtensor(value, num_classes)
                if isinstance(value, Tensor) and value.shape == self.ranges[name].shape
                else value
                for key, value in state["state"][name].items()
            }
        return state

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Take up what `optimizer_state` returned, filled from a checkpoint of any number of ranks."""
        of_parameters = {
            name: {key: value.to_local() if is_dtensor(value) else value for key, value in states.items()}
            for name, states in state["state"].items()
        }
        super().load_optimizer_state({**state, "state": of_parameters})


@dataclass(frozen=True, kw_only=True)
class ShardedPart(RangePart):
    """Heads that are sharded by class. Gradients are whole as they come: none but those of hidden layers is summed."""

    @property
    def heads(self) -> ShardedRLPHeads:
        """The heads."""
        assert isinstance(self.module, ShardedRLPHeads)
        return self.module

    def replicated_parameters(self) -> list[nn.Parameter]:
        """See `TrainedPart.replicated_parameters`: not those of the classes."""
        return list(self.heads.replicated_parameters())

    def sum_gradients(self) -> None:
        """See `RangePart.sum_gradients`."""
        self.heads.sum_replicated_gradients()


def shard_part(part: TrainedPart) -> ShardedPart:
    """Return the part as one whose heads are sharded."""
    heads = part.module
    assert isinstance(heads, ShardedRLPHeads)
    ranges = {f"heads.{name}": parameter for name, parameter in heads.heads.named_parameters()}
    settings = {field.name: getattr(part, field.name) for field in fields(part)}
    return ShardedPart(**settings, shards=heads.shards, ranges=ranges)
