"""A run from where it stands to its end: everything is built, and built again where it rolls back to a checkpoint."""

from __future__ import annotations

import gc
from contextlib import closing
from dataclasses import asdict

from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.distributed.stop_flag import StopFlag
from rlpheads.engine.model.plan import ModelPlan
from rlpheads.engine.report.console import open_console
from rlpheads.engine.report.display import Display
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.sources import Sources
from rlpheads.engine.training.closing import close_run, forget_earlier_end
from rlpheads.engine.training.loop import fit
from rlpheads.engine.training.opening import opening_lines
from rlpheads.engine.training.outcome import Outcome, RollBackError
from rlpheads.engine.training.rollback import RollBacks, record_rollback
from rlpheads.engine.training.start import Start
from rlpheads.engine.training.wiring import build_training


def train_with_rollbacks(
    start: Start, plan: ModelPlan, sources: Sources, folder: RunFolder, launched: Launch, stop_flag: StopFlag
) -> Outcome:
    """Train from `start` to the end, a stop signal or `max_steps`, as often as it rolls back. Collective.

    Raises:
        TrainingDivergedError: something is not finite, and the run is to stop.
    """
    rollbacks = RollBacks(start.config.stability.max_rollbacks)
    while True:
        try:
            return _train_from(start, plan, sources, folder, launched, stop_flag)
        except RollBackError as error:
            start = rollbacks.next_start(start, error, folder, sources, launched)
        gc.collect()  # the weights that are left, before there are others


def _train_from(
    start: Start, plan: ModelPlan, sources: Sources, folder: RunFolder, launched: Launch, stop_flag: StopFlag
) -> Outcome:
    """Build everything, take up where `start` says, and train.

    Raises:
        RollBackError: the run is to be taken up again.
    """
    config, fresh = start.config, start.point is None
    launched.progress.enter("building")
    training = build_training(config, plan, sources, folder, launched, fresh=fresh)
    console = open_console(quiet=not launched.is_main)
    display = Display(console, config.epochs, training.order.num_steps, launched.device, config.verbose)
    with closing(training.run.log), display:
        for line in opening_lines(training, fresh=fresh):
            display.say(line)
        for warning in (*sources.remarks, *start.warnings):
            display.warn(warning)
        if start.point is not None:
            training.resume(start.point)
            display.say(f"resumed from {start.point.checkpoint} at step {training.num_updates}")
        training.leave_out(start.left_out)
        if launched.is_main:
            known = None if start.point is None else start.point.record
            training.run.log.open(training.num_updates, training.position.epoch, asdict(config), known)
            record_rollback(training, start)
        forget_earlier_end(training)
        outcome = fit(training, display, stop_flag)
        training.announce("run_finished", outcome.status, outcome.reason)
        close_run(training, outcome, display, start.warnings)
    return outcome
