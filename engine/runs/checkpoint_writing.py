"""Checkpoints written: each rank's files hashed on their way to the disk, then the manifest, then one move into place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.utils.serialization import config as serialization

from rlpheads.engine.runs.checkpoint import (
    CheckpointError,
    delete_checkpoint,
    list_whole,
    read_manifest,
    sweep,
    write_sealed_manifest,
)
from rlpheads.engine.runs.hashed_files import HashingFileSystem
from rlpheads.memorization.atomic_file import flush_to_disk


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


def write_checkpoint(
    folder: Path, step: int, state: dict[str, Any], facts: Mapping[str, Any], writers: Writers, retention: Retention
) -> Path:
    """Write the checkpoint of `step`, and delete those that are not kept any more. Collective.

    Args:
        folder: the run's folder of checkpoints.
        step: optimizer steps taken.
        state: tensors, nested by name; sharded or replicated alike.
        facts: JSON-able progress and identity of the run; the main rank's are written.
        writers: the ranks.
        retention: which checkpoints are kept.
    """
    final = folder / f"step={step:09d}"
    temporary = folder / f".step={step:09d}.tmp"

    def begin() -> None:
        sweep(folder)
        temporary.mkdir(parents=True)

    writers.main_alone(begin)
    found: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size(writers.group))]
    dist.all_gather_object(found, _write_files(temporary, state, writers.group), group=writers.group)
    files = {name: facts_of_file for rank in found for name, facts_of_file in rank.items()}

    def close() -> None:
        write_sealed_manifest(temporary, {"step": step, **facts, "files": dict(sorted(files.items()))})
        _move_into_place(temporary, final)
        flush_to_disk(folder)
        for old in retention.surplus(list_whole(folder)):
            delete_checkpoint(old)

    writers.main_alone(close)
    return final


def _write_files(folder: Path, state: dict[str, Any], group: dist.ProcessGroup) -> dict[str, dict[str, Any]]:
    """Write this rank's files; return size and hash of each, by name. Collective."""
    files = HashingFileSystem()
    writer = dcp.FileSystemWriter(folder, sync_files=False)  # the files see to that themselves
    writer.fs = files
    without_crc = serialization.patch({"save.compute_crc32": False})  # type: ignore[attr-defined]  # made at run time
    with without_crc:  # 0.3 s of a core a gigabyte, for what the hash tells; in this thread alone
        dcp.save(state, storage_writer=writer, process_group=group)
    return files.facts


def _move_into_place(temporary: Path, final: Path) -> None:
    """Replace what was saved at the same step before (at the end of its epoch's training, say, but before its end)."""
    aside = final.with_name(f".{final.name}.old")
    if final.exists():
        final.rename(aside)
    temporary.rename(final)
    shutil.rmtree(aside, ignore_errors=True)


def _closes_epoch(checkpoint: Path) -> bool:
    try:
        position = read_manifest(checkpoint).get("position", {})
    except CheckpointError:  # damaged: a resume says so
        return False
    return position.get("consumed") == 0 and position.get("epoch", 0) > 0
