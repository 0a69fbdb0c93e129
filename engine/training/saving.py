"""Saving inside an epoch: every so many steps or minutes, when a file asks for it, and what happens when a save fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from rlpheads.engine.distributed.stop_flag import StopFlag
from rlpheads.engine.model.tapped_model import TappedModel
from rlpheads.engine.report.display import Display
from rlpheads.engine.runs.finite_content import NonfiniteStateError
from rlpheads.engine.runs.request_files import SAVE_REQUEST, STOP_REQUEST, RequestFiles
from rlpheads.engine.runs.storage_errors import describe_storage_failure, storage_failure
from rlpheads.engine.runs.weights_files import LAST_AVERAGED_WEIGHTS, LAST_WEIGHTS, write_weights
from rlpheads.engine.training.early_stopping import is_best_epoch
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


def keep_weights(training: Training, row: Mapping[str, Any], *, last: bool) -> None:
    """Write the weights of the epoch that ends, where they are to be kept; at the main rank alone.

    Args:
        training: at the end of an epoch, whose line is in metrics.jsonl.
        row: that line.
        last: no epoch follows.
    """
    config, folder = training.run.config, training.run.folder
    facts = {"epoch": row["epoch"], "step": row["step"], "model": config.model.name}
    if last:
        write_weights(folder.weights / LAST_WEIGHTS, training.learner.tapped.backbone, facts)
    if last and training.learner.ema is not None:
        write_weights(folder.weights / LAST_AVERAGED_WEIGHTS, _averaged_network(training), facts)
    every = config.checkpoint.weights_every
    if every is not None and is_due(every, row["epoch"], config.epochs):
        write_weights(folder.weights / f"epoch={row['epoch']:04d}.safetensors", training.learner.tapped.backbone, facts)
    metric = config.early_stopping.metric
    if config.checkpoint.best and is_best_epoch(metric, folder.metrics("epoch")):
        network = _measured_network(training, metric)
        write_weights(folder.weights / "best.safetensors", network, {**facts, "metric": metric, "value": row[metric]})


def _measured_network(training: Training, metric: str) -> nn.Module:
    """Return the network that a figure is of: the averaged one, or the live one."""
    if training.learner.ema is None or not metric.startswith("eval_ema_"):
        return training.learner.tapped.backbone
    return _averaged_network(training)


def _averaged_network(training: Training) -> nn.Module:
    assert training.learner.ema is not None
    assert isinstance(training.learner.ema.module, TappedModel)
    return training.learner.ema.module.backbone
