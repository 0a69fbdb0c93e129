"""Checkpoints: distributed files written to a temporary folder, hashed, and moved into place as a whole.

A checkpoint is `checkpoints/step=000001234/` with torch.distributed.checkpoint's files and `manifest.json`, written
last: the hash and size of every file, the run's progress, and a SHA-256 of all that. One flipped bit would load
silently otherwise, and a folder without a manifest is no checkpoint.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from rlpheads.engine.config.errors import UserError
from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.runs.finite_content import nonfinite_entries
from rlpheads.engine.runs.folder import write_atomically
from rlpheads.engine.runs.hashed_files import check_facts, file_problem
from rlpheads.engine.runs.storage_errors import describe_storage_failure
from rlpheads.memorization.atomic_file import flush_to_disk
from rlpheads.memorization.heads.class_shards import is_dtensor
from rlpheads.memorization.json_reading import DamagedJsonError, Kind, check_kinds, parse_mapping

if TYPE_CHECKING:
    from torch.distributed.checkpoint.api import CheckpointException

MANIFEST = "manifest.json"
KEYS: dict[str, Kind] = {"step": "count", "files": "mapping"}
"""What every manifest holds, whatever else the run says of itself."""


_LEFTOVER = re.compile(r"\.(?P<name>step=\d+)\.(?P<kind>tmp|old|gone)")
"""Folders that a save or a removal makes for a moment."""
BEGIN_AGAIN = "begin again with --run.overwrite or another --run.name"
_MOST_SHOWN = 200
SEAL = "sha256"
"""Key of the hash over all that a manifest says. Manifests of format 1, which had no key `format` either, lack it."""
FORMAT = 3
"""Of manifests that are written: since 3 files are hashed by XXH3, before by SHA-256."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not as it was written.

    Attributes:
        checkpoint: its folder.
        problem: what is wrong with it.
    """

    def __init__(self, checkpoint: Path, problem: str):
        super().__init__(f"{problem}; {_remedy(checkpoint)}")
        self.checkpoint = checkpoint
        self.problem = problem

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self.checkpoint, self.problem)


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept.

    Attributes:
        newest: how many of the newest.
        epochs: how many of the newest that close an epoch, whatever stops and steps add.
    """

    newest: int
    epochs: int = 0

    def surplus(self, checkpoints: list[Path]) -> list[Path]:
        """Return those of a list, the oldest first, that are not kept."""
        older = checkpoints[: -self.newest]
        closing = [path for path in checkpoints if _closes_epoch(path)] if older and self.epochs else []
        return [path for path in older if path not in closing[-self.epochs :]]


@dataclass(frozen=True)
class Writers:
    """The ranks that write a checkpoint together, over a gloo group that nothing else uses meanwhile."""

    group: dist.ProcessGroup
    is_main: bool

    def main_alone(self, action: Callable[[], object]) -> None:
        """Let the main rank do something, and all ranks raise what it raises. Collective."""
        error: list[Exception | None] = [None]
        if self.is_main:
            try:
                action()
            except Exception as raised:
                error[0] = raised
        dist.broadcast_object_list(error, src=0, group=self.group)
        if error[0] is not None:
            raise error[0]


def list_whole(folder: Path) -> list[Path]:
    """Return the checkpoints that have a manifest, the oldest first.

    Raises:
        CheckpointError: see `list_checkpoint_folders`.
    """
    try:
        return [path for path in list_checkpoint_folders(folder) if _exists(path / MANIFEST)]
    except OSError as error:
        raise CheckpointError(describe_storage_failure(error, folder)) from error


def list_checkpoint_folders(folder: Path) -> list[Path]:
    """Return the folders of checkpoints, the oldest first; one without a manifest has been damaged.

    Raises:
        CheckpointError: the folder cannot be looked into: it would look as if there were none.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.name.startswith("step="))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(describe_storage_failure(error, folder)) from error


def sweep(folder: Path) -> None:
    """Delete what killed saves and removals left; a checkpoint that was moved aside for one that never came is put back."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        leftover = _LEFTOVER.fullmatch(path.name)
        if leftover is None or path.is_symlink() or not path.is_dir():
            continue
        final = folder / leftover["name"]
        if leftover["kind"] == "old" and not final.exists():
            path.rename(final)
        else:
            _delete(path)


def set_aside(checkpoint: Path) -> Path:
    """Move a damaged checkpoint out of the way; it is never deleted. Return its new path."""
    taken = {path.name for path in checkpoint.parent.iterdir()}
    names = (f"damaged.{checkpoint.name}" + (f".{number}" if number else "") for number in itertools.count())
    aside = checkpoint.with_name(next(name for name in names if name not in taken))
    checkpoint.rename(aside)
    flush_to_disk(checkpoint.parent)
    return aside


def write_sealed_manifest(checkpoint: Path, content: Mapping[str, Any]) -> None:
    """Write what a checkpoint says about itself, sealed by a hash."""
    content = {"format": FORMAT, **content}
    sealed = {**content, SEAL: _seal(content)}
    write_atomically(checkpoint / MANIFEST, json.dumps(sealed, indent=2) + "\n")


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint says about itself.

    Raises:
        DamagedCheckpointError: the manifest is not as it was written.
        CheckpointError: it cannot be read, or is of a later version.
    """
    path = checkpoint / MANIFEST
    try:
        manifest = parse_mapping(path.read_bytes(), KEYS)
        if ("format" in manifest or SEAL in manifest) and _seal(manifest) != manifest.get(SEAL):
            raise DamagedJsonError("it does not have the hash that is recorded in it")
        for name, facts in manifest["files"].items():
            check_facts(name, facts)
        check_kinds({"format": FORMAT} | manifest, {"format": "count"})
    except (DamagedJsonError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DamagedCheckpointError(checkpoint, f"{path} is damaged ({error})") from error
    except OSError as error:
        raise CheckpointError(describe_storage_failure(error, checkpoint)) from error
    if manifest.get("format", 1) > FORMAT:
        raise CheckpointError(f"{path} is of format {manifest['format']}: a later version of rlpheads wrote it")
    return manifest


def verify(checkpoint: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare a checkpoint's files with what its manifest says of them, and look whether weights and states are finite.

    Raises:
        DamagedCheckpointError: a file is missing, or has another size or hash (all of them are named), or something is not
            finite: hashes say nothing of that.
        CheckpointError: a file cannot be read, or the metadata asks for what is no part of a checkpoint, though they are
            as they were written: by a stranger.
    """
    from torch.distributed.checkpoint.api import CheckpointException  # a run begins without it

    from rlpheads.engine.runs.checkpoint_metadata import MetadataError

    problems = [problem for name, facts in files.items() if (problem := file_problem(checkpoint / name, facts))]
    if problems:
        raise DamagedCheckpointError(checkpoint, f"{checkpoint} is damaged: {'; '.join(problems)}")
    try:
        spoiled = nonfinite_entries(checkpoint)
    except MetadataError as error:
        raise CheckpointError(f"{checkpoint} is damaged: {error}; {_remedy(checkpoint)}") from error
    except CheckpointException as error:
        if _is_systems(error):
            raise
        raise DamagedCheckpointError(checkpoint, _describe_unfit(checkpoint, error)) from error
    except OSError as error:
        raise CheckpointError(describe_storage_failure(error, checkpoint)) from error
    if spoiled:
        more = f" and {len(spoiled) - 1} more" if len(spoiled) > 1 else ""
        raise DamagedCheckpointError(checkpoint, f"{checkpoint} is not finite: {spoiled[0]}{more}")


def load(
    checkpoint: Path,
    state: dict[str, Any],
    launch: Launch,
    may_lack: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> None:
    """Fill the tensors of `state` in place. Collective.

    What `may_lack` names of a part and the files do not hold, as those of an older version, is taken out of `state`.

    Nothing in the folder can run code: see `rlpheads.engine.runs.checkpoint_metadata`.

    Raises:
        CheckpointError: the files lack a part of the state, or hold it in another form than their metadata says.
        torch.distributed.checkpoint.api.CheckpointException: the system cannot read a file.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    from rlpheads.engine.runs.checkpoint_metadata import fill_state, missing_names

    for part, names in may_lack.items():
        missing = missing_names(checkpoint, part, names)
        state[part] = {name: value for name, value in state[part].items() if name not in missing}
    try:
        fill_state(checkpoint, state, process_group=launch.control)
    except CheckpointException as error:
        if _is_systems(error):
            raise
        raise CheckpointError(f"{_describe_unfit(checkpoint, error)}; {_remedy(checkpoint)}") from error


def weights_sha256(module: nn.Module) -> str:
    """Hash a module's names, types and bytes, for comparing two runs. Collective where the module shows DTensors."""
    digest = hashlib.sha256()
    for name, part in sorted(module.state_dict().items()):
        tensor = part.full_tensor() if is_dtensor(part) else part
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def delete_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint; killed on the way, it leaves none that looks damaged."""
    gone = checkpoint.with_name(f".{checkpoint.name}.gone")
    checkpoint.rename(gone)
    _delete(gone)


def _closes_epoch(checkpoint: Path) -> bool:
    try:
        position = read_manifest(checkpoint).get("position", {})
    except CheckpointError:  # damaged: a resume says so
        return False
    return position.get("consumed") == 0 and position.get("epoch", 0) > 0


def _delete(folder: Path) -> None:
    """Delete a folder, or say which one it is that stays."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def _remedy(checkpoint: Path) -> str:
    before = [path.name for path in list_whole(checkpoint.parent) if path < checkpoint]
    if before:
        return f"move that folder away to resume from {before[-1]}"
    return f"there is none before it: {BEGIN_AGAIN}"


def _is_systems(error: CheckpointException) -> bool:
    """Whether a rank met a complaint of the system, such as a failing disk, about which the files say nothing."""
    return any(isinstance(failure, OSError) and failure.errno is not None for failure, _ in error.failures.values())


def _describe_unfit(checkpoint: Path, error: CheckpointException) -> str:
    """Say in one line what files do not hold; torch has a traceback for each rank."""
    failure, _ = next(iter(error.failures.values()))
    lines = str(failure).splitlines() or [type(failure).__name__]
    words = next((line for line in lines if "GLOBAL" in line), lines[0])  # of torch.load's advice, what was asked for
    return f"{checkpoint} is damaged: it does not hold the state that its manifest promises ({words[:_MOST_SHOWN]})"


def _seal(manifest: Mapping[str, Any]) -> str:
    """Hash all of a manifest but the hash itself; its layout does not count."""
    content = {key: value for key, value in manifest.items() if key != SEAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _exists(path: Path) -> bool:
    """As Path.exists, which passes over a folder that it may not look into."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
