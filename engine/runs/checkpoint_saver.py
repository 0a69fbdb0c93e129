"""Checkpoints saved in the background: the state is copied, training goes on, and a thread writes the copy."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlpheads.engine.config.run import CheckpointConfig
from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.runs.checkpoint import Retention, Writers
from rlpheads.engine.runs.finite_content import NonfiniteStateError, check_state_finite
from rlpheads.memorization.heads.class_shards import is_dtensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_WRITER_NICENESS = 10
"""How far the thread that writes stands behind training's own: a layer's team of threads waits for its slowest."""
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
        self._folder = folder
        self._device = launch.device
        self._writers = Writers(launch.host_group(), launch.is_main)
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
        """Whether the last state was not finite, or so many saves in a row failed, that the run is to end."""
        if isinstance(self._last_failure, NonfiniteStateError):
            return True
        allowed = 0 if self._settings.on_failure == "stop" else self._settings.max_failures - 1
        return self._failures > allowed

    def save(self, step: int, state: dict[str, Any], facts: Mapping[str, Any]) -> None:
        """Save a copy of the state as it is now, once the save before has ended; one that is not finite fails. Collective.

        Nothing is saved where that one's failure ends the run, which would hide it.

        Args:
            step: optimizer steps taken.
            state: tensors, nested by name.
            facts: what else the manifest says; the main rank's are written.
        """
        self.wait()
        if self.has_failed_for_good:
            return
        if not self._settings.background:
            self._end(_outcome_of(lambda: self._write(step, state, facts)))
            return
        copied = self._state_copy.take(state)

        def write() -> None:
            _give_way_to_training()
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
        from rlpheads.engine.runs.checkpoint_writing import write_checkpoint  # a run begins without it

        check_state_finite(state, step, self._writers.group)
        write_checkpoint(self._folder, step, state, facts, self._writers, self._retention)


def _give_way_to_training() -> None:
    """Lower this thread's scheduling priority, and that of the threads it starts, where threads have one of their own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + _WRITER_NICENESS
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, 19))


def _outcome_of(action: Callable[[], None]) -> BaseException | None:
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        action()
    except (Exception, CheckpointException) as error:  # told in the run's own thread; torch's is no Exception
        return error
    return None


class StateCopy:
    """Copies of the states of a run, one at a time: the next overwrites the one before.

    As large as the state; page-locked where it comes from a GPU, so that the copies run beside each other. torch's own stager
    (`torch.distributed.checkpoint.staging`) copies storages, which DTensors have none of.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[Any, ...], Tensor] = {}

    @torch.no_grad()
    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Copy tensors, sharded or not, nested in mappings and lists; return when all of them are there."""
        copied = {name: self._copy(value, (name,)) for name, value in state.items()}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        return copied

    def _copy(self, value: Any, path: tuple[Any, ...]) -> Any:
        if is_dtensor(value):
            return self._copy_shard(value, path)
        if isinstance(value, Tensor):
            return self._copy_tensor(value, path)
        if isinstance(value, Mapping):
            return {key: self._copy(each, (*path, key)) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._copy(each, (*path, position)) for position, each in enumerate(value))
        return value

    def _copy_tensor(self, tensor: Tensor, path: tuple[Any, ...]) -> Tensor:
        memory = self._memory.get(path)
        if memory is None or (memory.shape, memory.dtype) != (tensor.shape, tensor.dtype):
            memory = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._memory[path] = memory
        return memory.copy_(tensor, non_blocking=True)

    def _copy_shard(self, shard: DTensor, path: tuple[Any, ...]) -> DTensor:
        from torch.distributed.tensor import DTensor

        local = shard.to_local()
        shape, stride = shard.shape, shard.stride()
        copied = DTensor.from_local(
            local, shard.device_mesh, shard.placements, run_check=False, shape=shape, stride=stride
        )
        copied._local_tensor = self._copy_tensor(local, path)  # from_local would move it to the mesh's device again
        return copied
