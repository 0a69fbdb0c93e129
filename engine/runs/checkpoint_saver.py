"""Checkpoints saved in the background: the state is copied, training goes on, and a thread writes the copy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from rlpheads.engine.config.run import CheckpointConfig
from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.runs.checkpoint_writing import Retention, Writers, write_checkpoint
from rlpheads.engine.runs.state_copy import StateCopy

_CLOSING_SECONDS = 60.0
"""How long a run that fails waits for a checkpoint that is being written."""


class CheckpointSaver:
    """Saves the checkpoints of a run, one at a time. Made once, at all ranks together.

    All ranks meet the same outcome of a save, but not necessarily at the same step.

    Args:
        folder: the run's folder of checkpoints.
        launch: the ranks.
        settings: which checkpoints are kept, and whether training waits for them.
    """

    def __init__(self, folder: Path, launch: Launch, settings: CheckpointConfig):
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)  # every rank is a member
        self._folder = folder
        self._device = launch.device
        self._writers = Writers(group, launch.is_main)
        self._settings = settings
        self._retention = Retention(settings.keep, settings.keep_epochs)
        self._state_copy = StateCopy()
        self._thread: threading.Thread | None = None
        self._outcome: BaseException | None = None
        self._last_failure: BaseException | None = None
        self._is_told = True
        self._failures = 0

    @property
    def last_failure(self) -> BaseException | None:
        """Why the last save that has ended failed; None if it did not."""
        return self._last_failure

    @property
    def has_failed_for_good(self) -> bool:
        """Whether so many saves in a row failed that the run is to end."""
        allowed = 0 if self._settings.on_failure == "stop" else self._settings.max_failures - 1
        return self._failures > allowed

    def save(self, step: int, state: dict[str, Any], facts: Mapping[str, Any]) -> None:
        """Save a copy of the state as it is now, once the save before has ended. Collective.

        Args:
            step: optimizer steps taken.
            state: tensors, nested by name.
            facts: what else the manifest says; the main rank's are written.
        """
        self.wait()
        if not self._settings.background:
            self._end(_outcome_of(lambda: self._write(step, state, facts)))
            return
        copied = self._state_copy.take(state)

        def write() -> None:
            self._outcome = _outcome_of(lambda: self._write(step, copied, facts))

        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._thread.start()

    def new_failure(self) -> BaseException | None:
        """Return why the last save that has ended failed, if this was not asked since. Never waits."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()
        is_told, self._is_told = self._is_told, True
        return None if is_told else self._last_failure

    def wait(self, seconds: float | None = None) -> None:
        """Wait until nothing is being written, at most so long."""
        if self._thread is None:
            return
        self._thread.join(seconds)
        if not self._thread.is_alive():
            self._thread = None
            self._end(self._outcome)

    def close(self) -> None:
        """Give a checkpoint that is being written the time that it takes, and free the copy's memory."""
        self.wait(_CLOSING_SECONDS)
        if self._thread is None:
            self._state_copy = StateCopy()

    def _end(self, outcome: BaseException | None) -> None:
        self._failures = 0 if outcome is None else self._failures + 1
        self._last_failure, self._is_told = outcome, outcome is None

    def _write(self, step: int, state: dict[str, Any], facts: Mapping[str, Any]) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # a thread begins with the first one
        write_checkpoint(self._folder, step, state, facts, self._writers, self._retention)


def _outcome_of(action: Callable[[], None]) -> BaseException | None:
    try:
        action()
    except (Exception, CheckpointException) as error:  # told in the run's own thread; torch's is no Exception
        return error
    return None
