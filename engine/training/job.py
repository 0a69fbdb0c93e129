"""A run from its settings to its exit code: check everything, claim the folder, launch, fit, and say how it ended."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from rlpheads.engine.checks.settings import check_config
from rlpheads.engine.config.command_line import dump_config
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.files import read_config_file
from rlpheads.engine.config.schema import Config
from rlpheads.engine.config.streams import stream_seed
from rlpheads.engine.distributed import launch
from rlpheads.engine.distributed.launch import Launch, Rank
from rlpheads.engine.learner.learner import num_parameters
from rlpheads.engine.learner.optimizer import host_reads
from rlpheads.engine.learner.runtime import switched
from rlpheads.engine.report.display import Display
from rlpheads.engine.runs.checkpoint import CheckpointError, list_whole, weights_sha256
from rlpheads.engine.runs.environment import collect_environment
from rlpheads.engine.runs.folder import RunFolder, RunFolderError, claim, write_atomically
from rlpheads.engine.runs.log import RunLogError
from rlpheads.engine.runs.resume import ResumePoint, Sources, check_settings, find_resume_point
from rlpheads.engine.runs.storage_errors import storage_failure, told
from rlpheads.engine.training.closing import closing_lines
from rlpheads.engine.training.label_choice import settle_labels
from rlpheads.engine.training.loop import Outcome, TrainingDivergedError, fit
from rlpheads.engine.training.memory_errors import memory_failure
from rlpheads.engine.training.planting import planted, write_truth
from rlpheads.engine.training.wiring import Training, build_training
from rlpheads.loaders.contract.errors import DatasetError, ImageReadError, LoaderError
from rlpheads.loaders.factory import check_loader
from rlpheads.loaders.sources.datasets import open_dataset
from rlpheads.loaders.sources.subset import take_subset
from rlpheads.loaders.sources.synthetic import SyntheticSpec
from rlpheads.loaders.sources.verification import check_readable

EXIT_DONE, EXIT_FAILED = 0, 1
EXIT_REQUEUE = 75
"""BSD's EX_TEMPFAIL: stopped on a signal, whole, and to be started again with the same command."""


def run(config: Config) -> int:
    """Run one training to its end, a stop signal or a failure; return the exit code.

    Raises:
        ConfigError: settings, images, folder or checkpoint cannot be used; found before a process group is made.
    """
    rank = Rank.from_environment()
    check_config(config, rank.world_size)
    sources = open_sources(config)
    with _claimed(config, rank) as folder:
        begun = _begun(config, sources, folder) if rank.is_main else None
        try:
            with switched(config.runtime), launch.start(config.device) as launched:
                begun = launched.share(begun)
                assert begun is not None  # the main rank has begun
                return _train(begun, sources, folder, launched)
        except ConfigError as error:
            if rank.is_main:
                folder.write_status("failed", str(error))
            raise


class _Begun(NamedTuple):
    """What the main rank found out before the ranks meet."""

    config: Config
    """With a number for heads.labels, also where that was auto."""
    point: ResumePoint | None
    """Where to go on, if anywhere."""
    warnings: tuple[str, ...]
    """What the user should be told, now and at the end."""


def _begun(config: Config, sources: Sources, folder: RunFolder) -> _Begun:
    try:
        return _begin(config, sources, folder)
    except RunFolderError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        complaint = storage_failure(error, folder.path)
        if complaint is None:
            raise
        raise ConfigError(told(complaint, folder.path)) from error


def _begin(config: Config, sources: Sources, folder: RunFolder) -> _Begun:
    """Settle what is open, and find out where to go on; write the settings where there is nothing to go on from."""
    config, warnings = settle_labels(config, sources, folder.path)
    warnings = (*warnings, *host_reads(config))
    try:
        point = find_resume_point(config, folder.checkpoints, sources)
        if point is None:
            _check_nothing_is_lost(config, folder)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    if point is None:
        folder.clear()  # what a start that ended before its first checkpoint left
        write_atomically(folder.path / "config.yaml", dump_config(config))
        folder.write_json("environment.json", collect_environment())
        write_truth(sources.train, folder.path)
    for old in folder.path.glob("failed.rank*.json"):
        old.unlink()
    folder.write_status("running", "started", pid=os.getpid(), warnings=warnings)
    return _Begun(config, point, warnings)


def _check_nothing_is_lost(config: Config, folder: RunFolder) -> None:
    """Refuse to begin again where a run has results, or was begun with other settings.

    Raises:
        CheckpointError: with the remedy.
    """
    settings = folder.path / "config.yaml"
    if not settings.exists():
        return
    status = folder.status().get("status")
    if status in ("done", "requeue"):
        raise CheckpointError(
            f"{folder.path} holds a run that is {status}, but no checkpoint to go on from; "
            "begin again with --run.overwrite, or choose another --run.name"
        )
    check_settings(folder.path, asdict(config), read_config_file(str(settings)))


def open_sources(config: Config) -> Sources:
    """List the images.

    Raises:
        ConfigError: the images are not there, or cannot be split as asked.
    """
    data = config.data
    try:
        train, heldout = open_dataset(
            data.dataset,
            data.root,
            val_fraction=data.val_fraction,
            seed=stream_seed(config.seed, "split"),
            download=data.download,
            synthetic=SyntheticSpec(**asdict(data.synthetic), side=data.image_size),
            verified=data.verified,
        )
        check_loader(data.loader, heldout)
        train = take_subset(train, data.subset.fraction, data.subset.per_class, stream_seed(config.seed, "subset"))
        sources = Sources(planted(train, data, stream_seed(config.seed, "canaries")), heldout)
        for source in (sources.train, sources.heldout):
            check_readable(source.manifest, data.on_error)
    except DatasetError as error:
        raise ConfigError(str(error)) from error
    num_samples = sources.train.manifest.num_samples
    if data.partial == "drop" and num_samples < config.batch_size:
        raise ConfigError(
            f"batch_size is {config.batch_size}, but there are only {num_samples} training images; "
            f"give --batch_size {num_samples - num_samples % 2} or less, or --data.partial pad"
        )
    return sources


@contextmanager
def _claimed(config: Config, rank: Rank) -> Iterator[RunFolder]:
    """Hold the run folder's lock at the main rank; the others write nothing."""
    if not rank.is_main:
        yield RunFolder(Path(config.run.dir) / config.run.name)
        return
    try:
        folder, lock = claim(config.run)
    except RunFolderError as error:
        raise ConfigError(str(error)) from error
    with lock:
        yield folder


def _train(begun: _Begun, sources: Sources, folder: RunFolder, launched: Launch) -> int:
    config, point = begun.config, begun.point
    console = Console(quiet=not launched.is_main, width=None if sys.stdout.isatty() else 160)
    try:
        _check_same_images(sources, launched)
        training = build_training(config, sources, folder, launched, fresh=point is None)
        display = Display(console, config.epochs, training.order.num_steps, launched.device, config.verbose)
        with closing(training.log), display:
            display.say(opening_line(training))
            display.say(arithmetic_line(training))
            if training.learner.origin and point is None:
                display.say(training.learner.origin)
            for warning in begun.warnings:
                display.warn(warning)
            if point is not None:
                training.resume(point)
                display.say(f"resumed from {point.checkpoint} at step {training.num_updates}")
            if launched.is_main:
                training.log.open(training.num_updates, training.position.epoch, asdict(config))
            outcome = fit(training, display)
            _close(training, outcome, display, begun.warnings)
    except (TrainingDivergedError, ImageReadError, LoaderError, DatasetError, RunLogError) as error:
        _fail(folder, launched, error)
        print(f"error: {error}{_remedy(error)}", file=sys.stderr)
        return EXIT_FAILED
    except BaseException as error:
        _fail(folder, launched, error)
        shortage = memory_failure(error)
        if shortage is not None:
            print(f"error: {shortage}", file=sys.stderr)
            return EXIT_FAILED
        complaint = storage_failure(error, folder.path)
        if complaint is None:
            raise
        print(f"error: {told(complaint, folder.path)}{_what_then(folder)}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE if outcome.status == "done" else EXIT_REQUEUE


def _what_then(folder: RunFolder) -> str:
    """Say what the same command does once files can be written again, if it goes on."""
    try:
        whole = list_whole(folder.checkpoints)
    except CheckpointError:
        return ""
    return "; the same command then goes on from the last checkpoint, which is whole" if whole else ""


def _check_same_images(sources: Sources, launched: Launch) -> None:
    """Compare what this rank sees with what the main rank sees: an index must mean the same image everywhere.

    Raises:
        DatasetError: they differ.
    """
    here = [source.manifest.fingerprint for source in (sources.train, sources.heldout)]
    there = launched.share(here)
    if here != there:
        raise DatasetError(
            f"rank {launched.rank.rank} sees other images than rank 0: fingerprints {here}, not {there}; "
            "give every node the same files"
        )


def opening_line(training: Training) -> str:
    """Say in one line what is trained on what."""
    config, learner = training.config, training.learner
    heads = "no heads"
    if learner.heads is not None:
        heads = (
            f"{len(learner.dims)} taps x {config.heads.draws} draws x {config.heads.num_labels} labels "
            f"({num_parameters(learner.heads.module):,} parameters in the heads)"
        )
    return (
        f"{training.folder.path}: {config.model.name} ({num_parameters(learner.tapped):,} parameters), {heads}, "
        f"{training.sources.train.manifest.num_samples:,} training and "
        f"{training.sources.heldout.manifest.num_samples:,} held-out images, {config.precision} on "
        f"{training.launch.world_size} x {training.launch.device.type}"
    )


def arithmetic_line(training: Training) -> str:
    """Say in one line how much is computed for an image, and what MFU is held against."""
    flops, peak = training.utilisation.flops, training.utilisation.peak
    if flops is None:
        return "arithmetic: this model's cannot be counted; no MFU"
    shares = f"network {flops.network / 1e9:.4g}, heads {flops.heads / 1e9:.4g}"
    beside = "no MFU: the peak of this device is not known" if peak is None else f"peak {peak / 1e12:.4g} TFLOP/s"
    return f"arithmetic: {flops.total / 1e9:.4g} GFLOP an image, forward and backward ({shares}); {beside}"


def _close(training: Training, outcome: Outcome, display: Display, warnings: tuple[str, ...]) -> None:
    if not training.launch.is_main:
        return
    modules = {name: part.module for name, part in training.learner.parts}
    if training.learner.ema is not None:
        modules["ema"] = training.learner.ema.module
    hashes = {name: weights_sha256(module) for name, module in modules.items()}
    found = outcome.findings
    facts: dict[str, Any] = {"step": training.num_updates, "weights_sha256": hashes, "warnings": warnings}
    facts["skipped"] = _skipped_of_the_last_epoch(training.folder)
    if found is not None:
        facts |= {"top1": found.top1, "ece": found.ece, "clean_ece": found.clean_ece}
        if found.taps:
            facts["heldout_check"] = "failed" if found.strayed else "passed"
            facts["memory"] = [asdict(tap) for tap in found.memory]
    training.folder.write_status(outcome.status, outcome.reason, **facts)
    for name, digest in hashes.items():
        display.say(f"{name} weights sha256 {digest}")
    for line in closing_lines(outcome, training.config, training.folder.path):
        display.say(line)


def _skipped_of_the_last_epoch(folder: RunFolder) -> dict[str, int]:
    """Return how many images each pass of the last finished epoch left out, where it left any out."""
    last: dict[str, Any] = next(reversed(folder.metrics("epoch")), {})
    return {name: count for name, count in last.items() if name.endswith("_skipped") and count}


def _remedy(error: Exception) -> str:
    if not isinstance(error, ImageReadError):
        return ""
    return (
        ". Start again with --data.on_error skip to leave unreadable images out (named, counted and marked in the ledger); "
        "`rlpheads verify --data.root TREE` finds them all beforehand"
    )


def _fail(folder: RunFolder, launched: Launch, error: BaseException) -> None:
    """Write down why, unless the disk is why."""
    try:
        _write_failure(folder, launched, error)
    except OSError as second:
        print(f"status.json cannot be written either: {second}", file=sys.stderr)


def _write_failure(folder: RunFolder, launched: Launch, error: BaseException) -> None:
    """Say why. The rank that failed first is heard: the others only lose their connection to it."""
    reason = f"{type(error).__name__}: {error}"
    if not launched.is_main:
        folder.write_json(f"failed.rank{launched.rank.rank:04d}.json", {"reason": reason})
        return
    others = [
        f"{path.name}: {json.loads(path.read_text())['reason']}" for path in folder.path.glob("failed.rank*.json")
    ]
    folder.write_status("failed", "; ".join([*others, reason]))
