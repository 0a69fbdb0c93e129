"""A run from its settings to its exit code: check everything, claim the folder, launch, fit, and say how it ended."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict

from rlpheads.engine import exit_codes
from rlpheads.engine.checks.checks import check_config
from rlpheads.engine.checks.model import check_classes
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed import launch
from rlpheads.engine.distributed.launch import Launch, Rank
from rlpheads.engine.learner.runtime import torch_switches
from rlpheads.engine.model.plan import ModelPlan
from rlpheads.engine.report.console import open_console
from rlpheads.engine.report.display import Display
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.sources import Sources, check_same_images, open_sources
from rlpheads.engine.training.closing import close_run
from rlpheads.engine.training.failure import explain_failure, write_failure
from rlpheads.engine.training.loop import fit
from rlpheads.engine.training.opening import opening_lines
from rlpheads.engine.training.start import Start, claimed_folder, settle_start
from rlpheads.engine.training.wiring import build_training


def run(config: Config) -> int:
    """Run one training to its end, a stop signal or a failure; return the exit code.

    Raises:
        ConfigError: settings, images, folder or checkpoint cannot be used; found before a process group is made.
    """
    rank = Rank.from_environment()
    plan = check_config(config, rank.world_size)
    sources = open_sources(config)
    check_classes(plan, len(sources.train.manifest.classes))
    with claimed_folder(config, rank) as folder:
        start = settle_start(config, plan, sources, folder) if rank.is_main else None
        try:
            with torch_switches(config.runtime), launch.start(config.device) as launched:
                start = launched.share(start)
                assert start is not None  # the main rank has one
                return _train(start, plan, sources, folder, launched)
        except ConfigError as error:
            if rank.is_main:
                folder.write_status("failed", str(error))
            raise


def _train(start: Start, plan: ModelPlan, sources: Sources, folder: RunFolder, launched: Launch) -> int:
    config = start.config
    console = open_console(quiet=not launched.is_main)
    try:
        check_same_images(sources, launched)
        training = build_training(config, plan, sources, folder, launched, fresh=start.point is None)
        display = Display(console, config.epochs, training.order.num_steps, launched.device, config.verbose)
        with closing(training.run.log), display:
            for line in opening_lines(training, fresh=start.point is None):
                display.say(line)
            for warning in (*sources.remarks, *start.warnings):
                display.warn(warning)
            if start.point is not None:
                training.resume(start.point)
                display.say(f"resumed from {start.point.checkpoint} at step {training.num_updates}")
            if launched.is_main:
                known = None if start.point is None else start.point.record
                training.run.log.open(training.num_updates, training.position.epoch, asdict(config), known)
            outcome = fit(training, display)
            close_run(training, outcome, display, start.warnings)
    except BaseException as error:
        write_failure(folder, launched, error)
        explanation = explain_failure(error, folder)
        if explanation is None:
            raise
        return exit_codes.report_error(explanation, exit_codes.FAILED)
    return exit_codes.DONE if outcome.status == "done" else exit_codes.REQUEUE
