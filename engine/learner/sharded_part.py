"""Heads whose classes are sharded over the ranks, as a trained part: no wrapper, an optimizer over the rank's own range."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from rlpheads.engine.learner.parts import TrainedPart, total_norm
from rlpheads.memorization.heads.class_shards import is_dtensor
from rlpheads.memorization.heads.sharded_heads import ShardedRLPHeads


@dataclass(frozen=True)
class ShardedPart(TrainedPart):
    """Heads that are sharded by class, with an optimizer of this rank's range.

    Gradients are whole as they come: none but those of hidden layers is summed over the ranks. What all ranks must agree on
    travels in one message: the squared norm of the gradient, which is not finite where fp16 overflowed anywhere.
    """

    @property
    def heads(self) -> ShardedRLPHeads:
        """The heads."""
        assert isinstance(self.module, ShardedRLPHeads)
        return self.module

    @property
    def finds_norm_late(self) -> bool:
        """No: the ranks learn of one another's norm and of what is not finite in one message, before the update."""
        return False

    def replicated_parameters(self) -> list[nn.Parameter]:
        """See `TrainedPart.replicated_parameters`: not those of the classes."""
        return list(self.heads.replicated_parameters())

    def to_sum(self) -> Tensor:
        """See `TrainedPart.to_sum`: the squared norm of this range's gradient, which is finite unless fp16 overflowed."""
        self.heads.sum_replicated_gradients()
        norm = total_norm(self.heads.heads.parameters(), self.survey_pending())
        return self.without_scale(norm).square()[None]

    def norm_from(self, summed: Tensor) -> Tensor:
        """See `TrainedPart.norm_from`: the norm over the classes of all ranks."""
        replicated = self.heads.replicated_parameters()
        squared = summed[0] + self.without_scale(total_norm(replicated)).square() if replicated else summed[0]
        return squared.sqrt()

    def gradient_norm(self) -> Tensor:
        """See `TrainedPart.gradient_norm`: the norm over the classes of all ranks, in one message."""
        summed = self.to_sum()
        self.heads.shards.sum_over_ranks(summed)
        return self.norm_from(summed)

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state, what belongs to a range of classes as DTensors on the same memory."""
        heads, state = self.heads, super().optimizer_state()
        held = {f"heads.{name}": parameter for name, parameter in heads.heads.named_parameters()}
        for name in held.keys() & state["state"].keys():
            state["state"][name] = {
                key: heads.shards.as_dtensor(value, heads.num_classes)
                if isinstance(value, Tensor) and value.shape == held[name].shape
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


def shard_part(part: TrainedPart) -> ShardedPart:
    """Return the part as one whose heads are sharded."""
    return ShardedPart(**{field.name: getattr(part, field.name) for field in fields(part)})
