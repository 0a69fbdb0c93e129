"""Faults that are put into the steps of a run, in this process or (as a program) in the ranks of a torchrun.

As a program it is `engine/train.py` with the faults that the variable FAULTS lists as JSON.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rlpheads.engine.training.training import Training
from rlpheads.loaders.contract.batch import Batch

VARIABLE = "FAULTS"


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


def environment_of(faults: Iterable[Fault]) -> dict[str, str]:
    """Return the variables that give a program these faults."""
    return {VARIABLE: json.dumps([asdict(fault) for fault in faults])}


def _meet(fault: Fault, training: Training) -> list[Any]:
    """Let the next step meet a fault; return the hooks to be removed after it."""
    if fault.kind == "images":
        return [training.preparation.augment.register_forward_hook(lambda _module, _given, made: made * fault.size)]
    module = dict(training.learner.parts)[fault.part].module
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

    Training.train_on = train_on
    try:
        yield taken
    finally:
        Training.train_on = whole


if __name__ == "__main__":
    from rlpheads.engine import train

    with faults(*(Fault(**each) for each in json.loads(os.environ[VARIABLE]))):
        sys.exit(train.main())
