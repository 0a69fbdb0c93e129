"""A run from its settings to its exit code: check everything, claim the folder, launch, fit, and say how it ended."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.text import Text

from rlpheads.engine import exit_codes
from rlpheads.engine.checks.checks import check_config
from rlpheads.engine.checks.model import check_classes
from rlpheads.engine.config.data import DataConfig
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed import launch
from rlpheads.engine.distributed.launch import Launch, Rank
from rlpheads.engine.distributed.progress import Patience
from rlpheads.engine.distributed.staging import StagingStoppedError, stage_splits
from rlpheads.engine.distributed.stop_flag import StopFlag, install_stop_flag
from rlpheads.engine.distributed.watchdog import watchdog
from rlpheads.engine.learner.runtime import torch_switches
from rlpheads.engine.model.plan import ModelPlan
from rlpheads.engine.report.console import open_console
from rlpheads.engine.runs.folder import RunFolder, kept_listing
from rlpheads.engine.runs.sources import Sources, check_same_images, open_sources, scans_itself, share_sources
from rlpheads.engine.terminal.text import printable
from rlpheads.engine.training.attempts import train_with_rollbacks
from rlpheads.engine.training.failure import explain_failure, write_failure, write_hang
from rlpheads.engine.training.start import UNTRAINED, Start, claimed_folder, settle_start


def run(config: Config) -> int:
    """Run one training to its end, a stop signal or a failure; return the exit code.

    Raises:
        ConfigError: settings, images, folder or checkpoint cannot be used; found before a process group is made.
    """
    rank = Rank.from_environment()
    plan = check_config(config, rank.world_size)
    goes_on_without = config.data.on_error == "skip"  # images that are gone since the run began
    sources = None
    if scans_itself(config.data, rank):
        run_listing = RunFolder(Path(config.run.dir) / config.run.name).listing
        sources = open_sources(config, kept_listing(config.run) if goes_on_without else None, run_listing=run_listing)
        check_classes(plan, len(sources.train.manifest.classes))
    with claimed_folder(config, rank) as folder:
        start = settle_start(config, plan, sources, folder) if rank.is_main and sources is not None else None
        timeout = config.distributed.start_timeout
        try:
            with torch_switches(config.runtime), launch.start(config.device, timeout, folder.path) as launched:
                start = launched.share(start)
                assert start is not None  # the main rank has one
                sources = share_sources(config, sources, launched)
                with watchdog(launched, _patience(start.config), folder.path, partial(write_hang, folder, launched)):
                    return _train(start, plan, sources, folder, launched, config.data)
        except ConfigError as error:
            if rank.is_main:
                folder.write_status("failed", str(error))
            raise


def _patience(config: Config) -> Patience:
    return Patience(config.distributed.timeout, config.distributed.start_timeout)


def _staged(data: DataConfig, sources: Sources, launched: Launch, stop_flag: StopFlag) -> Sources:
    """Return the images as they lie on this node's own disk, where they are copied to it; collective."""
    if data.stage is None:
        return sources
    console = open_console(quiet=not launched.is_main)

    def say(line: str) -> None:
        console.print(Text(printable(line)), soft_wrap=True)

    train, heldout = stage_splits(data, (sources.train, sources.heldout), launched, say, stop_flag)
    return replace(sources, train=train, heldout=heldout)


def _train(
    start: Start, plan: ModelPlan, sources: Sources, folder: RunFolder, launched: Launch, here: DataConfig
) -> int:
    """Train; `here` are this rank's own settings of the images."""
    try:
        check_same_images(sources, launched)
        stop_flag = install_stop_flag(launched)
        sources = _staged(here, sources, launched, stop_flag)
        outcome = train_with_rollbacks(start, plan, sources, folder, launched, stop_flag)
    except StagingStoppedError as stopped:
        if launched.is_main:
            reason = f"stopped by {stopped} while images were copied (data.stage), before a step was taken"
            folder.write_status("requeue", reason, **({UNTRAINED: True} if start.point is None else {}))
            open_console(quiet=False).print(Text(f"requeue: {reason}; the same command goes on"), soft_wrap=True)
        return exit_codes.REQUEUE
    except BaseException as error:
        launched.progress.wait_if_judged()
        write_failure(folder, launched, error)
        explanation = explain_failure(error, folder)
        if explanation is None:
            raise
        return exit_codes.report_error(explanation, exit_codes.FAILED)
    return exit_codes.DONE if outcome.status == "done" else exit_codes.REQUEUE
