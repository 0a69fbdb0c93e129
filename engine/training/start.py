"""What the main rank settles before the ranks meet: the folder, the number of labels, where to resume, the settings."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from rlpheads.engine.config.command_line import dump_config
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.files import read_config_file
from rlpheads.engine.config.paths import with_absolute_paths
from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed.launch import Rank
from rlpheads.engine.learner.optimizer import host_sync_warnings
from rlpheads.engine.model.plan import ModelPlan
from rlpheads.engine.runs.checkpoint import CheckpointError
from rlpheads.engine.runs.environment import collect_environment
from rlpheads.engine.runs.folder import RunFolder, RunFolderError, claim, write_atomically
from rlpheads.engine.runs.lease import kept_lease
from rlpheads.engine.runs.request_files import RequestFiles
from rlpheads.engine.runs.resume import ResumePoint, check_settings, find_resume_point
from rlpheads.engine.runs.sources import Sources, write_canary_file, write_listings, write_sample_file
from rlpheads.engine.runs.storage_errors import describe_storage_failure, storage_failure
from rlpheads.engine.training.label_choice import head_baselines, settle_labels_in_memory
from rlpheads.engine.training.outcome import DIVERGENCE
from rlpheads.engine.training.steering import target_errors

_RESTARTED = (
    "this job was started again and goes on with what it made itself, whatever run.overwrite and run.resume say"
)
_MOST_NAMED = 8
UNTRAINED = "untrained"
"""Key of status.json: true where a run was stopped before its first step, so that it has no checkpoint."""


class Start(NamedTuple):
    """What the main rank found out, for all ranks."""

    config: Config
    """With a number for heads.labels, also where that was auto."""
    point: ResumePoint | None
    """Where to go on, if anywhere."""
    warnings: tuple[str, ...]
    """What the user should be told, now and at the end."""
    left_out: tuple[int, ...] = ()
    """Numbers of the steps, from 1, that this process rolled back because of."""


@contextmanager
def claimed_folder(config: Config, rank: Rank) -> Iterator[RunFolder]:
    """Hold the run folder's lock at the main rank; the others write nothing.

    Raises:
        ConfigError: the folder cannot be used.
    """
    if not rank.is_main:
        yield RunFolder(Path(config.run.dir) / config.run.name)
        return
    try:
        folder, lock = claim(config.run)
    except RunFolderError as error:
        raise ConfigError(str(error)) from error
    with lock, kept_lease(folder.path):
        yield folder


def settle_start(config: Config, plan: ModelPlan, sources: Sources, folder: RunFolder) -> Start:
    """Settle what is open, and find out where to go on; write the settings where there is nothing to go on from.

    Raises:
        ConfigError: the run in this folder cannot go on with these settings, or its files cannot be read or written.
    """
    try:
        return _settle_start(config, plan, sources, folder)
    except (RunFolderError, CheckpointError) as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        complaint = storage_failure(error, folder.path)
        if complaint is None:
            raise
        raise ConfigError(describe_storage_failure(complaint, folder.path)) from error


def _settle_start(config: Config, plan: ModelPlan, sources: Sources, folder: RunFolder) -> Start:
    config = with_absolute_paths(config)  # later commands may start in another folder
    config, warnings = settle_labels_in_memory(config, plan, sources, folder.path)
    baselines_T = head_baselines(config, sources.train.manifest, plan.dims)
    for error in target_errors(config.regularizer, baselines_T, 1 / config.heads.num_labels):
        raise error
    warnings = (*warnings, *host_sync_warnings(config))
    carried, overhead = _divergence_before(config, folder), _overhead_before(folder)
    folder.sweep()
    RequestFiles(folder.path).clear()
    unfinished = _unfinished_start(folder)
    point = find_resume_point(_with_restart(config, folder), folder.checkpoints, sources)
    if folder.is_restart and (config.run.overwrite or config.run.resume == "never"):
        warnings = (*warnings, _RESTARTED)
    if unfinished is not None:
        warnings = (*warnings, unfinished)
    if point is not None:
        warnings, carried = (*warnings, *point.warnings), carried | overhead
        if read_config_file(str(folder.path / "config.yaml")).get("epochs") != config.epochs:
            write_atomically(folder.path / "config.yaml", dump_config(config))  # raised, for later commands too
        folder.read_metrics()  # a damaged line ends the start before status.json is written
    else:
        _check_nothing_is_lost(config, folder)
        stays = folder.clear()  # what a start that ended before its first checkpoint left
        if stays:
            warnings = (*warnings, f"left in {folder.path}, since no run made it: {_list_some(stays)}")
        write_atomically(folder.path / "config.yaml", dump_config(config))
        folder.write_json("environment.json", collect_environment())
        write_canary_file(sources.train, folder.path)
        write_sample_file(sources, folder.path)
    write_listings(sources, folder.listing)
    for old in folder.path.glob("failed.rank*.json"):
        old.unlink()
    folder.write_status("running", "started", pid=os.getpid(), host=socket.gethostname(), warnings=warnings, **carried)
    return Start(config, point, warnings)


def _divergence_before(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Return what status.json says of divergences that a launcher's restarts met, for the next one.

    Raises:
        CheckpointError: they met the same one often enough, and nothing was changed.
    """
    found = folder.status().get(DIVERGENCE) if folder.is_restart else None
    if found is None:
        return {}
    limit = config.stability.max_rollbacks
    if found["times"] > limit and config.stability.on_nonfinite == "stop":
        raise CheckpointError(
            f"{folder.path} was not finite at step {found['step']} {found['times']} times in a row and was restarted each time "
            f"(stability.max_rollbacks is {limit}); leave the batch out with --stability.on_nonfinite skip"
        )
    return {DIVERGENCE: found}


def _overhead_before(folder: RunFolder) -> dict[str, Any]:
    """Return what a process that ended this run measured of its heads' cost: one that finds no step left cannot."""
    found = folder.status().get("overhead")
    return {} if found is None else {"overhead": found}


def _unfinished_start(folder: RunFolder) -> str | None:
    """Say that the start before this one ended without a word: its status is still running."""
    before = folder.status()
    if before.get("status") != "running":
        return None
    who = f"process {before.get('pid', '?')} on {before.get('host', 'this host')}"
    return (
        f"the start before this one ({who}) ended without a word: killed, out of memory, or its machine went down. What came "
        "after its last checkpoint is trained again"
    )


def _with_restart(config: Config, folder: RunFolder) -> Config:
    """Let a job that its launcher started again go on with what it made itself, also where `run.resume` is never."""
    if folder.is_restart and config.run.resume == "never":
        return replace(config, run=replace(config.run, resume="auto"))
    return config


def _list_some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _check_nothing_is_lost(config: Config, folder: RunFolder) -> None:
    """Refuse to begin again where a run has results, or was begun with other settings.

    Raises:
        CheckpointError: with the remedy.
    """
    settings = folder.path / "config.yaml"
    if not settings.exists():
        return
    before = folder.status()
    status = before.get("status")
    if status in ("done", "requeue") and not before.get(UNTRAINED):
        raise CheckpointError(
            f"{folder.path} holds a run that is {status}, but no checkpoint to go on from; "
            "begin again with --run.overwrite, or choose another --run.name"
        )
    check_settings(folder.path, asdict(config), read_config_file(str(settings)))
