"""Stability of a training: steps that were not finite are answered, and replicas that drift apart end the run.

Steps that were not finite are named when their window is read, and answered as `stability.on_nonfinite` says. The device has
left their updates out by then, at every rank alike. What is decided here follows from the sequence of the steps alone, not
from where windows end, so that `log_every` and a resume change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rlpheads.engine.gauges.meters import StepFigures
from rlpheads.engine.report.display import Display
from rlpheads.engine.training.outcome import REMEDIES, ReplicaDriftError, RollBackError, TrainingDivergedError
from rlpheads.engine.training.training import Training

_NORM, _FLAG = "_grad_norm", "_nonfinite"
_SCORED = ("class_loss", "image_rms")
"""Figures that may have spikes, beside the gradient norms."""


def review_steps(training: Training, display: Display, window: StepFigures) -> dict[str, float | None]:
    """Answer the steps of a window that were not finite; return the averages of the others, None where there is none.

    Raises:
        TrainingDivergedError: a step was not finite, and the run is to stop.
        RollBackError: more steps in a row than may be skipped were not finite.
    """
    spoiled = nonfinite_steps(window)
    scored = {name: values for name, values in window.figures.items() if name in _SCORED or name.endswith(_NORM)}
    for at, step in enumerate(window.steps):
        if step <= training.reviewed:
            continue
        if step in spoiled:
            _answer(training, display, step, spoiled[step])
        else:
            training.count_finite(step)
            _name_spikes(training, display, step, {name: values[at] for name, values in scored.items()})
    kept = [position for position, step in enumerate(window.steps) if step not in spoiled]
    averages = {name: _mean_of_finite([values[at] for at in kept]) for name, values in _shown(window.figures).items()}
    return averages | ({"left_out": len(spoiled)} if spoiled else {})


def review_open_window(training: Training, display: Display) -> None:
    """Answer the steps behind the last closed window, before they are saved as good: the host waits. Collective.

    Raises:
        TrainingDivergedError: as `review_steps`.
        RollBackError: as `review_steps`.
    """
    if (window := training.gauges.meters.read_open_window()) is not None:
        review_steps(training, display, window)


def nonfinite_steps(window: StepFigures) -> dict[int, str]:
    """Return what is not finite of every step that has something of the sort, by the step's number.

    The norm of a gradient that fp16 lets overflow is none of it, while a smaller loss scale can mend that.
    """
    found: dict[int, str] = {}
    for at, step in enumerate(window.steps):
        values = {name: column[at] for name, column in window.figures.items()}
        flagged = [name.removesuffix(_FLAG) for name, value in values.items() if name.endswith(_FLAG) and value]
        odd = {name: value for name, value in values.items() if not math.isfinite(value)}
        if flagged or any(not name.endswith(_NORM) for name in odd):
            shown = odd or {f"loss of {part}": math.nan for part in flagged}
            found[step] = ", ".join(f"{name}={value}" for name, value in shown.items())
    return found


def _name_spikes(training: Training, display: Display, step: int, figures: Mapping[str, float]) -> None:
    """Say and record which figures of a step stand out of those of the steps before; nothing is done about them."""
    found = training.gauges.spikes.take(figures)
    if not found:
        return
    display.warn(f"spike at step {step}: {'; '.join(map(str, found))}")
    if training.run.launch.is_main:
        event = {"kind": "event", "step": step, "epoch": training.position.epoch, "event": "spike"}
        scores = {f"{spike.name}_z": spike.score for spike in found}
        training.run.log.record_event(event | {spike.name: spike.value for spike in found} | scores)


def _answer(training: Training, display: Display, step: int, what: str) -> None:
    """Stop, skip or roll back for one step that was not finite."""
    settings = training.run.config.stability
    if settings.on_nonfinite == "stop":
        raise TrainingDivergedError(
            f"not finite at step {step}: {what}. {training.last_checkpoint_words}, and meets the same batch again: add "
            f"--stability.on_nonfinite skip to leave it out, or {REMEDIES} in a run with another --run.name",
            step,
        )
    training.count_skipped(step)
    skipped = training.position.skipped_in_a_row
    if len(skipped) > (settings.max_skipped if settings.on_nonfinite == "skip" else 0):
        raise RollBackError(f"not finite at step {step}: {what}", skipped)
    display.warn(f"step {step} was not finite ({what}) and is left out; its images are 'skipped' in the ledger")
    if training.run.launch.is_main:
        event = {"kind": "event", "step": step, "epoch": training.position.epoch, "event": "skipped"}
        training.run.log.record_event(event | {"nonfinite": what})


def _shown(figures: Mapping[str, list[float]]) -> dict[str, list[float]]:
    return {name: values for name, values in figures.items() if not name.endswith(_FLAG)}


def _mean_of_finite(values: list[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def watch_replicas(training: Training) -> None:
    """Look at the comparison that an earlier step began, and begin the next one where it is due. Collective.

    Raises:
        ReplicaDriftError: the weights of a rank are not those of the others.
    """
    _judge(training)
    if _is_on(training) and training.num_updates % training.run.config.stability.drift_every == 0:
        _begin(training)


def compare_replicas(training: Training) -> None:
    """Compare the replicas now, before one of them is saved for all: the host waits. Collective.

    Raises:
        ReplicaDriftError: as `watch_replicas`.
    """
    if _is_on(training):
        _judge(training)
        _begin(training)
        _judge(training)


def _is_on(training: Training) -> bool:
    return training.run.launch.world_size > 1 and training.run.config.stability.drift_every > 0


def _begin(training: Training) -> None:
    parts = {name: part.replicated_parameters() for name, part in training.learner.trained_parts.items()}
    training.gauges.replicas.begin(training.num_updates, {name: held for name, held in parts.items() if held})


def _judge(training: Training) -> None:
    found = training.gauges.replicas.finish()
    if found is None:
        return
    step, differing = found
    if differing:
        which = "; ".join(f"rank {rank}: {', '.join(parts)}" for rank, parts in differing.items())
        unsure = " (of two ranks nobody knows which is right)" if training.run.launch.world_size == 2 else ""
        raise ReplicaDriftError(
            f"replicas drift: after step {step} these weights are not those of the other ranks: {which}{unsure}. Look at "
            f"the memory, device and network of that rank. {training.last_checkpoint_words}"
        )
