"""Windows of `log_every` steps: closed on the device, read one step later, published in metrics.jsonl and on the display."""

from __future__ import annotations

from rlpheads.engine.gauges.meters import StepFigures
from rlpheads.engine.gauges.own_time import slowest_rank
from rlpheads.engine.report.display import Display
from rlpheads.engine.training.stability import review_steps
from rlpheads.engine.training.training import Training


def close_window(training: Training) -> None:
    """Start to read the averages of the steps since the last window was closed. Collective."""
    rates = {f"{name}_lr": part.lr for name, part in training.learner.parts.items()}
    own = training.gauges.own_time.take()
    alone = training.run.launch.world_size == 1
    training.gauges.meters.begin_read(training.num_updates, None if alone else own, **rates)


def publish_last_windows(training: Training, display: Display) -> None:
    """At the end of an epoch, publish the window that is still being read, then the steps behind it as a short one.

    Raises:
        TrainingDivergedError: as `publish_window`.
        RollBackError: as `publish_window`.
    """
    publish_closed_window(training, display)
    close_window(training)
    publish_closed_window(training, display)


def publish_closed_window(training: Training, display: Display) -> None:
    """Publish the window that is still being read, if there is one.

    Raises:
        TrainingDivergedError: as `publish_window`.
        RollBackError: as `publish_window`.
    """
    if (window := training.gauges.meters.finish_read()) is not None:
        publish_window(training, display, window)


def publish_window(training: Training, display: Display, window: StepFigures) -> None:
    """Answer the steps of a window that were not finite, then record and show the averages of the others.

    Raises:
        TrainingDivergedError: as `review_steps`.
        RollBackError: as `review_steps`.
    """
    averages = review_steps(training, display, window)
    row = {"kind": "step", "step": window.closed_at, "epoch": training.position.epoch, **averages, **window.beside}
    row |= training.gauges.rates | slowest_rank(window.ranks, len(window.steps))
    if training.run.launch.is_main:
        training.run.log.append(row)
    display.step(row, training.gauges.eta_seconds(training.images_left, training.evaluation_images_left))
