"""How a training ends: done, stopped by a signal and resumable, or diverged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rlpheads.engine.report.findings import Findings


class TrainingDivergedError(RuntimeError):
    """The loss is not finite any more."""


class TrainingStoppedError(RuntimeError):
    """A stop signal came during training."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `done`, or `requeue` when it was stopped and can go on."""

    status: Literal["done", "requeue"]
    reason: str
    findings: Findings | None = None
