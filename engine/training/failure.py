"""A training that fails: the reason in status.json, and one line for what the user can act on."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import torch

from rlpheads.engine import exit_codes
from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.distributed.launcher_folder import announce_hang
from rlpheads.engine.runs.checkpoint import CheckpointError, list_whole
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.storage_errors import describe_storage_failure, storage_failure
from rlpheads.engine.terminal.text import printable
from rlpheads.engine.trackers.tracker import RunLogError
from rlpheads.engine.training.outcome import DIVERGENCE, ReplicaDriftError, TrainingDivergedError, next_divergence
from rlpheads.loaders.contract.errors import DatasetError, ImageReadError, LoaderError
from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping

_SAYS_ENOUGH = (
    *(TrainingDivergedError, ReplicaDriftError, ImageReadError, LoaderError, DatasetError, RunLogError),
    CheckpointError,
)
"""Errors whose own message is what the user needs."""


def write_failure(folder: RunFolder, launched: Launch, error: BaseException) -> None:
    """Write the reason into the run folder, unless the disk is the reason."""
    try:
        _write_reason(folder, launched, error)
    except OSError as second:
        print(f"status.json cannot be written either: {printable(second)}", file=sys.stderr)


def _write_reason(folder: RunFolder, launched: Launch, error: BaseException) -> None:
    """Write status.json at the main rank, behind what other ranks say: they may have failed first.

    A rank that fails second only loses its connection to the first, so each other rank leaves a file of its own.
    """
    reason = f"{type(error).__name__}: {error}"
    if not launched.is_main:
        folder.write_json(f"failed.rank{launched.rank.rank:04d}.json", {"reason": reason})
        return
    others = [f"{path.name}: {_read_reason(path)}" for path in sorted(folder.path.glob("failed.rank*.json"))]
    facts = {}
    if isinstance(error, TrainingDivergedError):
        facts = {DIVERGENCE: next_divergence(folder.status().get(DIVERGENCE), error.step)}
    folder.write_status("failed", "; ".join([*others, reason]), **facts)


def _read_reason(path: Path) -> str:
    """Return why another rank failed; that it cannot be read is no reason to lose one's own."""
    try:
        return str(parse_mapping(path.read_bytes(), {"reason": "text"})["reason"])
    except (OSError, DamagedJsonError) as error:
        return f"cannot be read ({error})"


def write_hang(folder: RunFolder, launched: Launch, verdict: str) -> None:
    """Print a watchdog's verdict and write it into the run folder, at the rank that found the hang."""
    announce_hang()
    exit_codes.report_error(verdict)
    with suppress(OSError):
        if not launched.is_main:  # should the main rank fail of it, it finds the reason
            folder.write_json(f"failed.rank{launched.rank.rank:04d}.json", {"reason": verdict})
        folder.write_status("failed", verdict)


def explain_failure(error: BaseException, folder: RunFolder) -> str | None:
    """Return what failed and what to do, in one line; None for a fault of the program, whose traceback is wanted."""
    if isinstance(error, _SAYS_ENOUGH):
        return f"{error}{_skip_remedy(error)}"
    if (shortage := memory_failure(error)) is not None:
        return shortage
    if (complaint := storage_failure(error, folder.path)) is not None:
        return f"{describe_storage_failure(complaint, folder.path)}{_resume_hint(folder)}"
    return None


def memory_failure(error: BaseException) -> str | None:
    """Return which memory ran out (GPU, process or /dev/shm) and what takes less of it; None for an error of another sort.

    Torch has no exception of its own for two of the three: their messages tell.
    """
    words = str(error)
    if isinstance(error, RuntimeError) and "unable to allocate shared memory" in words:
        remedy = "give /dev/shm more room (docker run --shm-size 8g), or load without processes: --data.workers 0"
        line = next(line for line in words.splitlines() if "unable to allocate" in line)  # behind a worker's traceback
        return f"no shared memory for the loader: {line.removeprefix('RuntimeError: ')}; {remedy}"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in words:
        least = "fewer --heads.labels, --heads.draws or --heads.taps, a smaller --batch_size, or more --accumulate"
        return f"out of memory: {words.splitlines()[0] if words else type(error).__name__}; give {least}"
    return None


def _skip_remedy(error: Exception) -> str:
    if not isinstance(error, ImageReadError):
        return ""
    return (
        ". Start again with --data.on_error skip to leave unreadable images out (named, counted and marked in the ledger); "
        "`rlpheads verify --data.root TREE` finds them all beforehand"
    )


def _resume_hint(folder: RunFolder) -> str:
    """Say what the same command does once files can be written again, if there is a checkpoint."""
    try:
        whole = list_whole(folder.checkpoints)
    except CheckpointError:
        return ""
    return "; the same command then goes on from the last checkpoint, which is whole" if whole else ""
