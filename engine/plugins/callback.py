"""What a plug-in may do during a run: five events of the loop, and what each is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rlpheads.engine.config.schema import Config


@dataclass(frozen=True)
class LoopState:
    """Where a run stands at an event.

    Attributes:
        config: settings of the run.
        folder: the run folder; only the main rank writes there.
        is_main: whether this is the main rank.
        epoch: the epoch that is trained, from 0.
        step: optimizer steps taken.
        model: the network with its taps, without wrappers; its weights are those of this moment.
    """

    config: Config
    folder: Path
    is_main: bool
    epoch: int
    step: int
    model: nn.Module


class Callback:
    """Base class of callbacks; a plug-in's `callbacks` lists objects of subclasses. Events come at every rank, in this order.

    An exception ends the run as one of the engine's own does. In `step_taken` nothing may wait for the device (`.item()`,
    `print(tensor)`), or each step does.
    """

    def run_started(self, state: LoopState) -> None:
        """Everything is built, and a resumed run has taken up its checkpoint; no step was taken yet."""

    def epoch_started(self, state: LoopState) -> None:
        """An epoch begins, or goes on in its middle after a resume."""

    def step_taken(self, state: LoopState) -> None:
        """An optimizer step was taken."""

    def epoch_finished(self, state: LoopState, figures: Mapping[str, Any]) -> None:
        """An epoch was measured and recorded.

        Args:
            state: where the run stands; `epoch` is the one that has ended.
            figures: the epoch's line in metrics.jsonl.
        """

    def run_finished(self, state: LoopState, status: str, reason: str) -> None:
        """The run ends.

        Args:
            state: where the run stands.
            status: "done", or "requeue" where the same command would go on.
            reason: why, in words.
        """


EVENTS = tuple(name for name in vars(Callback) if not name.startswith("_"))
"""Names of the events, in the order of a run."""
