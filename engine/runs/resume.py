"""Where a run resumes: its newest whole checkpoint, compared with settings, images and order before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rlpheads.engine.config.paths import PATH_KEYS
from rlpheads.engine.config.run import ProfileConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.runs.checkpoint import (
    BEGIN_AGAIN,
    MANIFEST,
    CheckpointError,
    DamagedCheckpointError,
    list_checkpoint_folders,
    set_aside,
    sweep,
    verify,
)
from rlpheads.engine.runs.record_digests import FileDigest, record_problems
from rlpheads.engine.runs.run_manifest import Position, RunManifest, WindowShape, read_run_manifest
from rlpheads.engine.runs.sources import Sources, training_order
from rlpheads.loaders.contract.order import ORDER_VERSION
from rlpheads.loaders.sources.content_sample import replaced_files

FREE_TO_CHANGE = frozenset(
    {"run", "eval", "ledger", "checkpoint", "max_steps", "early_stopping", "log_every", "log", "verbose", "device"}
    | {"stability", "distributed"}
    | {
        "data.workers",
        "data.root",
        "data.download",
        "data.verified",
        "data.rescan",
        "data.stage",
        "data.on_error",
        "data.max_skipped",
    }
    | {"runtime.activation_checkpointing", "heads.shard", "heads.update"}
    | {f"runtime.profile.{setting.name}" for setting in fields(ProfileConfig)}
)
"""Settings (or groups of them) that a resumed run may change, since they do not change what is learned.

`data.on_error` is one: where it would have mattered before, the run had ended.
"""


_RAISING = (
    "The epochs of a run can be raised where schedule.name is constant, step or multistep, and without "
    "regularizer.target or with eval.clean_every 1: otherwise those that are trained would have been others"
)
_MOST_NAMED = 3


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on.

    Attributes:
        checkpoint: folder of the checkpoint.
        position: where it was written.
        factor: the regulariser's λ at that moment.
        window: the figures that were not written yet, whose sums the checkpoint holds.
        record: digests of the files of the record that are as they were.
        warnings: what the user should be told of checkpoints that were passed over, and of files that are lost.
        spikes: what loss and gradient norms were before, for the z-scores of the next ones.
    """

    checkpoint: Path
    position: Position
    factor: float
    window: WindowShape | None = None
    record: Mapping[str, FileDigest] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    spikes: Mapping[str, tuple[int, float, float]] = field(default_factory=dict)


def identity(config: Config, sources: Sources) -> dict[str, Any]:
    """Return what a checkpoint must share with the run that goes on from it."""
    return {
        "fingerprint": sources.train.manifest.fingerprint,
        "heldout_fingerprint": sources.heldout.manifest.fingerprint,
        "contents": sources.contents,
        "order_version": ORDER_VERSION,
        "config": asdict(config),
    }


def find_resume_point(config: Config, checkpoints: Path, sources: Sources) -> ResumePoint | None:
    """Return where to go on as `run.resume` says, or None to start from the beginning.

    Damaged checkpoints are set aside where `checkpoint.on_damage` is fallback and there is a whole one before them.

    Args:
        config: settings of the run.
        checkpoints: the run's folder of checkpoints.
        sources: the images.

    Raises:
        CheckpointError: there must be a checkpoint and is none, or it is of other images or settings; the newest one is
            damaged, and so are all before it or `checkpoint.on_damage` is stop. Nothing is moved then.
    """
    if config.run.resume == "never":
        return None
    sweep(checkpoints)
    damaged: list[DamagedCheckpointError] = []
    for path in reversed(list_checkpoint_folders(checkpoints)):
        try:
            point = _resume_point(config, path, sources)
        except DamagedCheckpointError as error:
            if config.checkpoint.on_damage == "stop":
                raise
            damaged.append(error)
        else:
            point = _with_record(config, point, checkpoints.parent)
            warnings = tuple(_set_aside(error, path) for error in damaged)
            return replace(point, warnings=warnings + point.warnings)
    if damaged:
        problems = "; ".join(error.problem for error in damaged)
        raise CheckpointError(f"{problems}; there is no whole checkpoint: {BEGIN_AGAIN}")
    if config.run.resume == "must":
        raise CheckpointError(
            f"run.resume is must, but {checkpoints} holds no whole checkpoint; "
            "start from the beginning with --run.resume auto"
        )
    return None


def _resume_point(config: Config, checkpoint: Path, sources: Sources) -> ResumePoint:
    """Return where to go on from a checkpoint, which is found whole and of this very run."""
    manifest = read_run_manifest(checkpoint)
    check_images(sources, manifest)
    check_settings(checkpoint.parent.parent, asdict(config), manifest.config)
    check_order(config, checkpoint, manifest, sources)
    verify(checkpoint, manifest.files)
    begun_with = _epochs(manifest.config)
    raised = f"the epochs are raised from {begun_with} to {config.epochs}"
    return ResumePoint(
        checkpoint,
        manifest.position,
        manifest.factor,
        manifest.window,
        manifest.record,
        (raised,) if config.epochs > begun_with else (),
        manifest.spikes,
    )


def _with_record(config: Config, point: ResumePoint, folder: Path) -> ResumePoint:
    """Return the point with the part of its record that is as it was, and a warning where some is not.

    Raises:
        CheckpointError: some is not, and `checkpoint.on_damage` is stop.
    """
    problems = dict(record_problems(folder, point.record))
    if not problems:
        return point
    told = f"the record in {folder} is damaged: {'; '.join(problems.values())}"
    if config.checkpoint.on_damage == "stop":
        raise CheckpointError(
            f"{told}; put back what was there, or go on without it with --checkpoint.on_damage fallback"
        )
    intact = {name: digest for name, digest in point.record.items() if name not in problems}
    warning = f"{told}; training goes on, and what was there stays lost unless it is put back"
    return replace(point, record=intact, warnings=(*point.warnings, warning))


def _set_aside(error: DamagedCheckpointError, whole: Path) -> str:
    aside = set_aside(error.checkpoint)
    return f"{error.problem}; it was set aside as {aside.name}, and the run goes on from {whole.name}"


def check_order(config: Config, checkpoint: Path, manifest: RunManifest, sources: Sources) -> None:
    """Compare a checkpoint's steps with its position in the order of the samples.

    Raises:
        CheckpointError: the order is that of another version.
        DamagedCheckpointError: steps and position, or the folder's name, contradict each other.
    """
    if (version := manifest.order_version) != ORDER_VERSION:
        raise CheckpointError(
            f"{checkpoint} was written with version {version} of the samples' order, and here it is version "
            f"{ORDER_VERSION}: an epoch that is half trained would meet some samples twice and others never. Go on with "
            "the version of rlpheads that began the run, or start a new run with another --run.name"
        )
    order, position = training_order(config, sources.train), manifest.position
    try:
        step = position.epoch * order.num_steps + order.step_at(position.consumed)
    except ValueError as error:
        raise DamagedCheckpointError(checkpoint, f"{checkpoint / MANIFEST} is damaged: {error}") from error
    if not step == manifest.step == _step_in_name(checkpoint):
        problem = (
            f"{checkpoint / MANIFEST} is damaged: it is of step {manifest.step}, but epoch {position.epoch} and "
            f"{position.consumed} samples of it are step {step}"
        )
        raise DamagedCheckpointError(checkpoint, problem)


def _step_in_name(checkpoint: Path) -> int | None:
    digits = checkpoint.name.removeprefix("step=")
    return int(digits) if digits.isdecimal() else None


def check_images(sources: Sources, manifest: RunManifest) -> None:
    """Compare the images with those that a checkpoint was made from: an index must mean the same image.

    Raises:
        CheckpointError: they differ, in names and sizes (both fingerprints are shown) or in what files hold.
    """
    recorded = ((manifest.fingerprint, sources.train), (manifest.heldout_fingerprint, sources.heldout))
    for there, source in recorded:
        here = source.manifest.fingerprint
        if here != there:
            raise CheckpointError(
                f"the {source.manifest.split} images are not those of the checkpoint: their fingerprint is {here}, "
                f"the checkpoint's is {there}. Its random labels belong to its own images: restore them, or start a new "
                f"run with another --run.name{_hint_of_skipping(sources)}"
            )
    for name, source in (("train", sources.train), ("heldout", sources.heldout)):
        hashes = manifest.contents.get(name, {})  # runs begun before there were such hashes have none
        if replaced := replaced_files(source, hashes):
            raise CheckpointError(
                f"the {source.manifest.split} images are not those of the checkpoint: of {len(hashes)} files that were "
                f"compared, {len(replaced)} have other contents, {_named(replaced)}. Its random labels belong to its own "
                "images: restore them, or start a new run with another --run.name"
            )


def _hint_of_skipping(sources: Sources) -> str:
    return "; where images of the tree are gone, --data.on_error skip goes on without them" if sources.listed else ""


def _named(files: list[str]) -> str:
    first = ", ".join(files[:_MOST_NAMED])
    return f"among them {first}" if len(files) > _MOST_NAMED else first


def check_settings(run: Path, config: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Compare the settings of a run with those it was begun with.

    A setting that was unknown when the run was begun counts as its default.

    Raises:
        CheckpointError: they differ in what is learned; each difference is named.
    """
    here, there = _flattened(config), _flattened(asdict(Config())) | _flattened(saved)
    for settings in (here, there):  # a run from before they were kept as absolute paths has them as they were given
        settings |= {
            key: str(Path(settings[key]).absolute()) for key in PATH_KEYS if isinstance(settings.get(key), str)
        }
    free = FREE_TO_CHANGE - ({"eval"} if config["regularizer"]["target"] is not None else set())  # it steers λ
    if raises_epochs(config, saved):
        free = free | {"epochs"}
    changed = [
        f"{key} is {here.get(key)!r} now and was {there.get(key)!r}"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key) and not {key, key.split(".")[0]} & free
    ]
    if changed:
        hint = f". {_RAISING}" if here["epochs"] > _epochs(there) and "epochs" not in free else ""
        raise CheckpointError(
            f"{run} was begun with other settings: {'; '.join(changed)}{hint}. "
            "Give it the same settings, or start a new run with another --run.name"
        )


def raises_epochs(config: Mapping[str, Any], saved: Mapping[str, Any]) -> bool:
    """Whether a run gets more epochs than it was begun with, and the ones that it has trained stay what they are.

    Rates of other schedules span all epochs. Where λ is steered, an epoch that was the last had a clean pass more.
    """
    is_steered = config["regularizer"]["target"] is not None and config["eval"]["clean_every"] != 1
    schedule_permits = config["schedule"]["name"] in ("constant", "step", "multistep")
    return schedule_permits and not is_steered and config["epochs"] > _epochs(saved)


def _epochs(saved: Mapping[str, Any]) -> int:
    epochs = saved.get("epochs")
    return epochs if isinstance(epochs, int) else Config().epochs


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
