"""How a training ends: done, stopped by a signal and resumable, to be taken up again at a checkpoint, or diverged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rlpheads.engine.report.findings import Findings

REMEDIES = "lower optim.lr or heads.optim.lr, set optim.clip_norm, or lower regularizer.factor"
"""What makes a run less likely to diverge."""


class TrainingDivergedError(RuntimeError):
    """A loss, gradient, weight or evaluation is not finite any more.

    Attributes:
        step: number of the step, from 1, where that was met.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class ReplicaDriftError(RuntimeError):
    """The weights of a rank are not those of the others."""


DIVERGENCE = "diverged"
"""Key of status.json that says at which step, and how often in a row, a launcher's restarts of a run diverged."""


def next_divergence(before: Mapping[str, int] | None, step: int) -> dict[str, int]:
    """Return the record of a divergence at `step`, with those that the restarts before it met there."""
    return {"step": step, "times": before["times"] + 1 if before is not None and before["step"] == step else 1}


class TrainingStoppedError(RuntimeError):
    """A stop signal came during training."""


class RollBackError(RuntimeError):
    """The run is to go on from its last checkpoint without some batches.

    Attributes:
        steps: numbers of the steps, from 1, that take them.
    """

    def __init__(self, message: str, steps: tuple[int, ...]):
        super().__init__(message)
        self.steps = steps


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `done`, or `requeue` when it was stopped and can go on."""

    status: Literal["done", "requeue"]
    reason: str
    findings: Findings | None = None
