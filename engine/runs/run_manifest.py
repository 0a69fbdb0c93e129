"""What a checkpoint's manifest says of the run that goes on from it, read strictly: whoever wrote it, sealed or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from rlpheads.engine.runs.checkpoint import MANIFEST, DamagedCheckpointError, read_manifest
from rlpheads.engine.runs.record_digests import FileDigest
from rlpheads.memorization.json_reading import DamagedJsonError, Kind, check_items, check_kinds, nesting

_NEEDED: dict[str, Kind] = {
    "fingerprint": "text",
    "heldout_fingerprint": "text",
    "config": "mapping",
    "position": "mapping",
    "regularizer_factor": "finite number",
}
_MAY_LACK: dict[str, tuple[Kind, Any]] = {
    "contents": ("mapping", {}),
    "order_version": ("count", 1),
    "record": ("mapping", {}),
    "spikes": ("mapping", {}),
}
"""Of what older versions did not write: its kind, and what it counts as."""
_DEEPEST = 20
"""How deep settings are nested at most: no traversal of theirs can run out of stack."""
_MOST_SHOWN = 40


@dataclass(frozen=True)
class Position:
    """How far a training is. Nothing else is needed to go on.

    Attributes:
        epoch: whole epochs.
        consumed: samples of the unfinished one, of batches that are left out too.
        left_out: numbers of the steps, from 1, whose global batches no step is taken on: a run rolled back because of them.
        skipped_in_a_row: numbers of the steps just before this position whose updates were not finite and not taken.
    """

    epoch: int = 0
    consumed: int = 0
    left_out: tuple[int, ...] = ()
    skipped_in_a_row: tuple[int, ...] = ()

    def after(self, num_samples: int) -> Position:
        """Return the position so many samples of the same epoch later."""
        return Position(self.epoch, self.consumed + num_samples, self.left_out, self.skipped_in_a_row)

    @property
    def next_epoch(self) -> Position:
        """The beginning of the next epoch."""
        return replace(self, epoch=self.epoch + 1, consumed=0)


@dataclass(frozen=True)
class WindowShape:
    """A window of `log_every` steps that a checkpoint stands in the middle of.

    Attributes:
        names: of the figures.
        steps: numbers, from 1, of the window's steps that were taken.
        ranks: by how many ranks.
    """

    names: tuple[str, ...]
    steps: tuple[int, ...]
    ranks: int


@dataclass(frozen=True)
class RunManifest:
    """What a checkpoint says of itself and of the run that wrote it.

    Attributes:
        step: optimizer steps taken.
        files: size and hash of each file, by name.
        fingerprint: of the training images.
        heldout_fingerprint: of the held-out ones.
        config: the run's settings; the values are not looked at.
        position: where it was written.
        factor: the regulariser's λ at that moment.
        contents: hashes of some images by index (in text), for each split; empty where none were compared.
        order_version: version of the samples' order.
        window: the figures that were not written yet, whose sums the checkpoint holds.
        record: digests of the files of the record.
        spikes: count, mean and variance by figure.
    """

    step: int
    files: Mapping[str, Mapping[str, Any]]
    fingerprint: str
    heldout_fingerprint: str
    config: Mapping[str, Any]
    position: Position
    factor: float
    contents: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    order_version: int = 1
    window: WindowShape | None = None
    record: Mapping[str, FileDigest] = field(default_factory=dict)
    spikes: Mapping[str, tuple[int, float, float]] = field(default_factory=dict)


def read_run_manifest(checkpoint: Path) -> RunManifest:
    """Return what a checkpoint says of itself and of the run that wrote it.

    Raises:
        DamagedCheckpointError: the manifest is damaged, or not that of a training run.
        CheckpointError: it cannot be read.
    """
    manifest = read_manifest(checkpoint)
    try:
        return _run_manifest(manifest)
    except DamagedJsonError as error:
        problem = f"{checkpoint / MANIFEST} is damaged, or no training run wrote it ({error})"
        raise DamagedCheckpointError(checkpoint, problem) from error


def _run_manifest(manifest: Mapping[str, Any]) -> RunManifest:
    check_kinds(manifest, _NEEDED)
    found = {key: manifest.get(key, standing) for key, (_, standing) in _MAY_LACK.items()}
    check_kinds(found, {key: kind for key, (kind, _) in _MAY_LACK.items()})
    return RunManifest(
        manifest["step"],
        manifest["files"],
        manifest["fingerprint"],
        manifest["heldout_fingerprint"],
        _settings(manifest["config"]),
        _position(manifest["position"]),
        manifest["regularizer_factor"],
        {split: _contents(split, hashes) for split, hashes in found["contents"].items()},
        found["order_version"],
        _window(manifest.get("window"), manifest["files"]),
        {name: _digest(name, digest) for name, digest in found["record"].items()},
        {name: _moments(name, moments) for name, moments in found["spikes"].items()},
    )


def _position(found: Mapping[str, Any]) -> Position:
    check_kinds(found, {"epoch": "count", "consumed": "count"})
    steps = (tuple(check_items(key, found.get(key, []), "count")) for key in ("left_out", "skipped_in_a_row"))
    return Position(found["epoch"], found["consumed"], *steps)


def _settings(found: Mapping[str, Any]) -> Mapping[str, Any]:
    if nesting(found) > _DEEPEST:
        raise DamagedJsonError("config is nested too deeply")
    return found


def _window(found: Any, files: Mapping[str, Mapping[str, Any]]) -> WindowShape | None:
    if found is None:
        return None
    check_kinds({"window": found}, {"window": "mapping"})
    check_kinds(found, {"names": "list", "steps": "list", "ranks": "count"})
    names, steps = check_items("names", found["names"], "text"), check_items("steps", found["steps"], "count")
    num_figures = found["ranks"] * len(steps) * len(names)
    if not 0 < num_figures <= sum(facts["bytes"] for facts in files.values()):
        raise DamagedJsonError(f"window holds {num_figures} figures")
    return WindowShape(tuple(names), tuple(steps), found["ranks"])


def _contents(split: str, found: Any) -> Mapping[str, str]:
    check_kinds({split: found}, {split: "mapping"})
    check_kinds(found, dict.fromkeys(found, "text"))
    if not all(
        index.isascii() and index.isdecimal() and len(index) < 19 and index == str(int(index)) for index in found
    ):
        raise DamagedJsonError("contents are not by index")
    return dict(found)


def _digest(name: str, found: Any) -> FileDigest:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
        raise DamagedJsonError(f"record has {name[:_MOST_SHOWN]!r}, which is no file of a run")
    check_kinds({name: found}, {name: "mapping"})
    check_kinds(found, {"bytes": "count", "sha256": "text"})
    return FileDigest(found["bytes"], found["sha256"])


def _moments(name: str, found: Any) -> tuple[int, float, float]:
    numbers = check_items(name, found, "finite number")
    if len(numbers) != 3 or type(numbers[0]) is not int or numbers[0] < 0 or numbers[2] < 0:
        raise DamagedJsonError(f"spikes has {repr(numbers)[:_MOST_SHOWN]}, which is no count, mean and variance")
    return numbers[0], float(numbers[1]), float(numbers[2])
