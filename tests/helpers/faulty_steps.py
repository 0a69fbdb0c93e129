"""Faults that are put into the steps of a run, in this process or in the ranks that are forked for it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rlpheads.engine.training.training import Training
from rlpheads.loaders.contract.batch import Batch


@dataclass(frozen=True)
class Fault:
    """What happens at step number `step` (from 1), at one rank or at all: each time that the step is taken.

    `kind`: gradient (of a weight of `part`, times `size`), weights (of one tensor, shifted by `size`) or images (times `size`).
    """

    step: int
    kind: str = "gradient"
    rank: int | None = None
    size: float = float("inf")
    part: str = "backbone"


def _meet(fault: Fault, training: Training) -> list[Any]:
    """Let the next step meet a fault; return the hooks to be removed after it."""
    if fault.kind == "images":
        return [training.preparation.augment.register_forward_hook(lambda _module, _given, made: made * fault.size)]
    module = training.learner.parts[fault.part].module
    parameter = next(each for each in module.parameters() if each.requires_grad)
    if fault.kind == "gradient":
        return [parameter.register_hook(lambda gradient: gradient * fault.size)]
    with torch.no_grad():
        parameter += fault.size
    return []


@contextmanager
def faults(*wanted: Fault) -> Iterator[list[int]]:
    """Let steps go wrong while the context is open; yields the numbers of all steps that were taken, in order."""
    whole, taken = Training.train_on, []
    Training.train_on = _with_faults(whole, wanted, taken)
    try:
        yield taken
    finally:
        Training.train_on = whole


def put_in(wanted: Sequence[Fault], _rank: int) -> None:
    """Let steps of this process, a rank, go wrong from here on."""
    Training.train_on = _with_faults(Training.train_on, wanted, [])


def _with_faults(
    whole: Callable[[Training, Batch], None], wanted: Sequence[Fault], taken: list[int]
) -> Callable[[Training, Batch], None]:
    def train_on(self: Training, delivered: Batch) -> None:
        step, rank, hooks = self.num_updates + 1, self.run.launch.rank.rank, []
        if step not in self.position.left_out:
            taken.append(step)
            for fault in wanted:
                if fault.step == step and fault.rank in (None, rank):
                    hooks += _meet(fault, self)
        whole(self, delivered)
        for hook in hooks:
            hook.remove()

    return train_on
