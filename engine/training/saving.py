"""Saving inside an epoch: every so many steps or minutes, when a file asks for it, and what happens when a save fails."""

from __future__ import annotations

import time
from collections.abc import Callable

from rlpheads.engine.distributed.stop_flag import StopFlag
from rlpheads.engine.report.display import Display
from rlpheads.engine.runs.finite_content import NonfiniteStateError
from rlpheads.engine.runs.request_files import SAVE_REQUEST, STOP_REQUEST, RequestFiles
from rlpheads.engine.runs.storage_errors import describe_storage_failure, storage_failure
from rlpheads.engine.training.stability import compare_replicas, review_open_window
from rlpheads.engine.training.training import Training, is_due
from rlpheads.engine.training.windows import publish_closed_window


def save_checkpoint(training: Training, display: Display) -> None:
    """Save where the training stands, and publish before what is still being read of its figures. Collective."""
    training.run.launch.progress.enter("checkpoint")
    publish_closed_window(training, display)
    review_open_window(training, display)
    compare_replicas(training)
    training.save()
    display.note(f"checkpoint at step {training.num_updates}")


class SaveSchedule:
    """When a checkpoint is due while an epoch is trained; the main rank's clock and run folder decide for all.

    Args:
        training: what is saved.
        display: where failed saves are told.
        stop_flag: by which the ranks agree.
        now: seconds on the host.
    """

    def __init__(
        self, training: Training, display: Display, stop_flag: StopFlag, now: Callable[[], float] = time.monotonic
    ):
        self._training = training
        self._display = display
        self._stop_flag = stop_flag
        self._now = now
        self._settings = training.run.config.checkpoint
        self._requests = RequestFiles(training.run.folder.path)
        self._last = now()

    def after_step(self) -> bool:
        """Save where it is due after a step; return whether all ranks stop now. Collective, without waiting."""
        self._tell_failure()
        if self._training.run.launch.is_main:
            self._ask()
        stops = self._stop_flag.agreed()
        if not stops and (self._stop_flag.take_save() or self._is_due_by_steps()):
            clock = self._training.gauges.clock
            clock.stop()
            save_checkpoint(self._training, self._display)
            clock.start()
            self._last = self._now()
        return stops

    def finish(self) -> None:
        """Wait for the save that is under way. Collective.

        Raises:
            TrainingDivergedError: what was to be saved is not finite.
            Exception: it failed, and nothing follows that could be saved better.
        """
        saver = self._training.saver
        self._training.run.launch.progress.enter("checkpoint")
        saver.wait()
        if isinstance(saver.last_failure, NonfiniteStateError):
            raise self._training.divergence(saver.last_failure) from saver.last_failure
        if saver.last_failure is not None:
            raise saver.last_failure

    def save_at_stop(self) -> None:
        """Save where the training stands, unless that is saved, and wait for it. Collective.

        Raises:
            Exception: it failed, or so many saves before it that the run was to end.
        """
        self._training.saver.wait()
        if not self._training.is_saved and not self._training.saver.has_failed_for_good:
            save_checkpoint(self._training, self._display)
        self.finish()

    def _tell_failure(self) -> None:
        saver = self._training.saver
        if (failure := saver.new_failure()) is None:
            return
        if saver.has_failed_for_good:
            self._stop_flag.request_stop("a checkpoint that could not be saved")
        else:
            folder = self._training.run.folder.path
            complaint = storage_failure(failure, folder)
            told = str(failure) if complaint is None else describe_storage_failure(complaint, folder)
            self._display.warn(
                f"a checkpoint was not saved: {told}; training goes on, and the next is tried when it is due"
            )

    def _ask(self) -> None:
        found = self._requests.take()
        if STOP_REQUEST in found:
            self._stop_flag.request_stop(f"the file {STOP_REQUEST}")
        minutes = self._settings.every_minutes
        if SAVE_REQUEST in found or (minutes is not None and self._now() - self._last >= 60 * minutes):
            self._stop_flag.request_save()
            self._last = self._now()

    def _is_due_by_steps(self) -> bool:
        training, steps = self._training, self._settings.every_steps
        if steps is None or training.num_updates % steps:
            return False
        epoch = training.position.epoch  # at its end one follows that closes the epoch
        return training.epoch_has_steps_left or not is_due(self._settings.every, epoch, training.run.config.epochs)
