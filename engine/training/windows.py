"""Windows of `log_every` steps: closed on the device, read one step later, published in metrics.jsonl and on the display."""

from __future__ import annotations

import math

from rlpheads.engine.report.display import Display
from rlpheads.engine.training.outcome import TrainingDivergedError
from rlpheads.engine.training.training import Training


def close_window(training: Training) -> None:
    """Start to read the averages of the steps since the last window was closed. Collective."""
    rates = {f"{name}_lr": part.lr for name, part in training.learner.parts}
    training.gauges.meters.begin_read(training.num_updates, **rates)


def publish_last_windows(training: Training, display: Display) -> None:
    """At the end of an epoch, publish the window that is still being read, then the steps behind it as a short one.

    Raises:
        TrainingDivergedError: as `publish_window`.
    """
    publish_closed_window(training, display)
    close_window(training)
    publish_closed_window(training, display)


def publish_closed_window(training: Training, display: Display) -> None:
    """Publish the window that is still being read, if there is one.

    Raises:
        TrainingDivergedError: as `publish_window`.
    """
    if (window := training.gauges.meters.finish_read()) is not None:
        publish_window(training, display, *window)


def publish_window(training: Training, display: Display, step: int, figures: dict[str, float]) -> None:
    """Record and show the averages of the window that was closed at `step`.

    Raises:
        TrainingDivergedError: a figure is not finite.
    """
    if not all(math.isfinite(value) for value in figures.values()):
        names = ", ".join(f"{name}={value}" for name, value in figures.items() if not math.isfinite(value))
        raise TrainingDivergedError(
            f"not finite at step {step}: {names}. The last checkpoint is whole; lower optim.lr or "
            "heads.optim.lr, set optim.clip_norm, or lower regularizer.factor"
        )
    row = {"kind": "step", "step": step, "epoch": training.position.epoch, **figures}
    row |= training.gauges.rates
    if training.run.launch.is_main:
        training.run.log.append(row)
    display.step(row, training.gauges.eta_seconds(training.images_left, training.evaluation_images_left))
