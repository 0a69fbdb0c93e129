"""The loop of a run.

    resume from the newest checkpoint, or start
    for each epoch that is left:
        for each batch that is left of it:
            train_step(batch)                        no host synchronisation
            read the figures of the step before last
            save in the background if it is due; stop if a signal, a file or max_steps says so
        evaluate held-out (and, when due, the training set without augmentation); this epoch is the last if it is no better
        write ledger, metrics, summary; then the checkpoint, which closes the epoch
    check the held-out random-label accuracy against chance, draw the figures, say how it ended

A run that is stopped saves where it stands and goes on from that very sample. A run that is killed goes on from its
last checkpoint and writes the same numbers again.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

from rlpheads.engine.distributed.stop_flag import StopFlag, install_stop_flag
from rlpheads.engine.gauges.tracing import StepTracer
from rlpheads.engine.learner.evaluation import EvaluationInterruptedError
from rlpheads.engine.report.display import Display
from rlpheads.engine.training.closing import conclude
from rlpheads.engine.training.epoch_end import finish_epoch, reason_to_stop_early
from rlpheads.engine.training.opening import draw_first_batch
from rlpheads.engine.training.outcome import Outcome, RollBackError, TrainingStoppedError
from rlpheads.engine.training.saving import SaveSchedule, save_checkpoint
from rlpheads.engine.training.stability import watch_replicas
from rlpheads.engine.training.training import Training
from rlpheads.engine.training.windows import close_window, publish_closed_window, publish_last_windows


def fit(training: Training, display: Display, stop_flag: StopFlag | None = None) -> Outcome:
    """Train from `training.position` to the end, a stop signal or `max_steps`. Collective.

    `stop_flag`: catches the stop signals already; None: one is installed.

    Raises:
        TrainingDivergedError: something is not finite, and the run is to stop.
        RollBackError: something is not finite, and the run is to go on from its last checkpoint.
    """
    stop_flag = stop_flag or install_stop_flag(training.run.launch)
    saves = SaveSchedule(training, display, stop_flag)
    profile, folder = training.run.config.runtime.profile, training.run.folder.path / "profile"
    tracer = StepTracer(profile, training.run.launch, folder, display.say)
    try:
        training.announce("run_started")
        outcome = _train_epochs(training, display, stop_flag, saves, tracer)
        saves.finish()
        return outcome
    except (TrainingStoppedError, EvaluationInterruptedError):
        saves.save_at_stop()
        return Outcome("requeue", f"stopped by {stop_flag.reason} after step {training.num_updates}")
    except RollBackError:
        training.saver.wait()  # it may be the checkpoint that the run goes back to
        raise
    finally:
        tracer.close()
        training.saver.close()
        stop_flag.drain()


def _train_epochs(
    training: Training, display: Display, stop_flag: StopFlag, saves: SaveSchedule, tracer: StepTracer
) -> Outcome:
    """Train the epochs that are left.

    Raises:
        TrainingStoppedError, EvaluationInterruptedError: on a stop signal.
    """
    config = training.run.config
    while training.position.epoch < config.epochs:
        if training.position.consumed == 0 and (reason := reason_to_stop_early(training)) is not None:
            return conclude(training, display, stop_flag, reason)
        if _train_epoch(training, display, saves, tracer) == "max_steps":
            training.check_finite()
            save_checkpoint(training, display)
            publish_last_windows(training, display)  # taken back where the run goes on: the checkpoint has its sums
            reason = f"max_steps={config.max_steps} reached"
            return conclude(training, display, stop_flag, reason, closed=False)
        figures = finish_epoch(training, display, stop_flag)
        training.announce("epoch_finished", figures, epoch=figures["epoch"])
    return conclude(training, display, stop_flag, f"all {config.epochs} epochs trained")


def _train_epoch(
    training: Training, display: Display, saves: SaveSchedule, tracer: StepTracer
) -> Literal["trained", "max_steps"]:
    """Train the rest of the position's epoch, or as much of it as `max_steps` allows.

    Raises:
        TrainingStoppedError: on a stop signal.
    """
    clock, progress = training.gauges.clock, training.run.launch.progress
    training.splits.trained.loader.set_epoch(training.position.epoch, training.position.consumed)
    training.learner.train()
    training.announce("epoch_started")
    traced_step = tracer.step if tracer.is_on else nullcontext
    stopped = False
    clock.start()
    batches = iter(training.splits.trained.loader)
    while training.epoch_has_steps_left and not training.reached_max_steps and not stopped:
        with traced_step(training.num_updates):
            progress.enter("waiting for images", training.num_updates)
            with clock.waiting():
                delivered = next(batches)
            progress.enter(training.step_phase, training.num_updates)
            training.train_on(delivered)
            draw_first_batch(training)
            training.announce("step_taken")
            clock.step(delivered.num_global_rows)
            publish_closed_window(training, display)
            watch_replicas(training)
            if training.num_updates % training.run.config.log_every == 0:
                close_window(training)
            stopped = saves.after_step()
    clock.stop()
    if stopped:
        raise TrainingStoppedError
    if training.epoch_has_steps_left:
        return "max_steps"
    publish_last_windows(training, display)
    return "trained"
