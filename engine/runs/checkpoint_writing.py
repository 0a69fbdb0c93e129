"""Checkpoints written: each rank's files hashed on their way to the disk, then the manifest, then one move into place."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.utils.serialization import config as serialization

from rlpheads.engine.runs.checkpoint import (
    Retention,
    Writers,
    delete_checkpoint,
    list_whole,
    sweep,
    write_sealed_manifest,
)
from rlpheads.engine.runs.hashed_files import WRITTEN, WrittenFile, created
from rlpheads.engine.runs.storage_errors import named_complaints
from rlpheads.memorization.atomic_file import flush_to_disk


class HashingFileSystem(FileSystem):
    """Writes files that are on the disk once they are closed, and knows the size and hash of each."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[str, WrittenFile] = {}

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Size and hash of each file that was written, by name."""
        return {name: {"bytes": file.num_bytes, WRITTEN: file.digest.hexdigest()} for name, file in self._files.items()}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        """Open a file that is written from its beginning to its end; complaints about it name it."""
        assert mode == "wb"
        with named_complaints(Path(path)), created(Path(path)) as descriptor:
            file = self._files[Path(path).name] = WrittenFile(descriptor)
            yield file
            file.finish()

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Move a file; what is known of it goes with it."""
        super().rename(path, new_path)
        self._files[Path(new_path).name] = self._files.pop(Path(path).name)


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
