"""Where a run resumes: its newest whole checkpoint, compared with the settings and images before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rlpheads.engine.config.paths import PATH_KEYS
from rlpheads.engine.config.run import ProfileConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.runs.checkpoint import MANIFEST, CheckpointError, find, read_manifest, verify
from rlpheads.engine.runs.sources import Sources

FREE_TO_CHANGE = frozenset(
    {"run", "eval", "ledger", "checkpoint", "max_steps", "early_stopping", "log_every", "log", "verbose", "device"}
    | {"data.workers", "data.root", "data.download", "data.verified", "data.on_error"}
    | {"runtime.activation_checkpointing"}
    | {f"runtime.profile.{setting.name}" for setting in fields(ProfileConfig)}
)
"""Settings (or groups of them) that a resumed run may change, since they do not change what is learned.

`data.on_error` is one: where it would have mattered before, the run had ended.
"""


_NEEDED = ("fingerprint", "heldout_fingerprint", "config", "position", "regularizer_factor")
"""What a manifest says of the run that goes on from it."""


@dataclass(frozen=True)
class Position:
    """How far a training is: whole epochs, and samples of the unfinished one. Nothing else is needed to go on."""

    epoch: int = 0
    consumed: int = 0


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint of this run, the position it was written at, and the regulariser's λ at that moment."""

    checkpoint: Path
    position: Position
    factor: float


def identity(config: Config, sources: Sources) -> dict[str, Any]:
    """Return what a checkpoint must share with the run that goes on from it."""
    return {
        "fingerprint": sources.train.manifest.fingerprint,
        "heldout_fingerprint": sources.heldout.manifest.fingerprint,
        "config": asdict(config),
    }


def find_resume_point(config: Config, checkpoints: Path, sources: Sources) -> ResumePoint | None:
    """Return where to go on as `run.resume` says, or None to start from the beginning.

    Args:
        config: settings of the run.
        checkpoints: the run's folder of checkpoints.
        sources: the images.

    Raises:
        CheckpointError: there must be a checkpoint and is none, it is damaged, or it is of other images or settings.
    """
    found = None if config.run.resume == "never" else find(checkpoints)
    if found is None:
        if config.run.resume == "must":
            raise CheckpointError(
                f"run.resume is must, but {checkpoints} holds no whole checkpoint; "
                "start from the beginning with --run.resume auto"
            )
        return None
    manifest = read_run_manifest(found)
    check_images(sources, manifest)
    check_settings(found.parent.parent, asdict(config), manifest["config"])
    verify(found, manifest)
    return ResumePoint(found, Position(**manifest["position"]), manifest["regularizer_factor"])


def read_run_manifest(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself and of the run that wrote it.

    Raises:
        CheckpointError: the manifest is damaged, or not that of a training run.
    """
    manifest = read_manifest(checkpoint)
    if missing := [key for key in _NEEDED if key not in manifest]:
        raise CheckpointError(
            f"{checkpoint / MANIFEST} lacks {', '.join(missing)}: it is damaged, or no training run wrote it; "
            "begin again with --run.overwrite, or choose another --run.name"
        )
    return manifest


def check_images(sources: Sources, manifest: Mapping[str, Any]) -> None:
    """Compare the images with those that a checkpoint was made from: an index must mean the same image.

    Raises:
        CheckpointError: they differ; both fingerprints are shown.
    """
    for key, source in (("fingerprint", sources.train), ("heldout_fingerprint", sources.heldout)):
        here, there = source.manifest.fingerprint, manifest[key]
        if here != there:
            raise CheckpointError(
                f"the {source.manifest.split} images are not those of the checkpoint: their fingerprint is {here}, "
                f"the checkpoint's is {there}. Its random labels belong to its own images: restore them, or start a new "
                "run with another --run.name"
            )


def check_settings(run: Path, config: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Compare the settings of a run with those it was begun with.

    A setting that was unknown when the run was begun counts as its default.

    Raises:
        CheckpointError: they differ in what is learned; each difference is named.
    """
    here, there = _flattened(config), _flattened(asdict(Config())) | _flattened(saved)
    for settings in (here, there):  # a run from before they were kept as absolute paths has them as they were given
        settings |= {key: str(Path(settings[key]).absolute()) for key in PATH_KEYS if settings.get(key) is not None}
    free = FREE_TO_CHANGE - ({"eval"} if config["regularizer"]["target"] is not None else set())  # it steers λ
    changed = [
        f"{key} is {here.get(key)!r} now and was {there.get(key)!r}"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key) and not {key, key.split(".")[0]} & free
    ]
    if changed:
        raise CheckpointError(
            f"{run} was begun with other settings: {'; '.join(changed)}. "
            "Give it the same settings, or start a new run with another --run.name"
        )


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
