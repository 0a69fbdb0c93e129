"""The folder of a run: claimed by one run at a time, and written so that a reader never sees half a file."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rlpheads.engine.config.errors import UserError
from rlpheads.engine.config.run import RunConfig
from rlpheads.engine.runs.lease import read_lease, wait_for_lease
from rlpheads.engine.runs.ownership import (
    LOCK,
    MARK,
    JobOwner,
    holds_nothing,
    is_run_folder,
    read_owner,
    remove_run_files,
    remove_temporary_files,
    write_mark,
)
from rlpheads.engine.runs.record_digests import METRICS
from rlpheads.engine.runs.storage_errors import describe_storage_failure
from rlpheads.memorization.atomic_file import atomic_file
from rlpheads.memorization.json_reading import DamagedJsonError, Kind, parse_mapping, read_rows

_ROW: dict[str, Kind] = {"kind": "text", "step": "count", "epoch": "count"}
"""What every line of metrics.jsonl says beside its figures."""

MEMORY_FILE = "memory.json"
"""What a run remembers, written as it ends (`rlpheads.engine.report.run_memory`)."""
LISTING = "listing"
Status = Literal["running", "done", "requeue", "failed"]


class RunFolderError(UserError):
    """The run folder cannot be used as asked; the message says what to do."""


class RunFolder:
    """A run folder that this process holds the lock of.

    Contents: `rlpheads.engine.runs.ownership.RUN_FILES`.

    Attributes:
        path: the folder.
        is_restart: this very job made it and was started again by its launcher.
    """

    def __init__(self, path: Path, *, is_restart: bool = False):
        self.path = path
        self.is_restart = is_restart

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.path / "figures"

    @property
    def listing(self) -> Path:
        """Folder of the images' names and sizes as the run found them, and of what tells whether they are so still."""
        return self.path / LISTING

    @property
    def weights(self) -> Path:
        """Folder of the network's weights alone."""
        return self.path / "weights"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's files."""
        return self.path / "tensorboard"

    def ledger(self, epoch: int, phase: str) -> Path:
        """Return the path of one ledger file; `phase` is running, clean or heldout."""
        return self.path / "ledger" / f"epoch={epoch:04d}" / f"{phase}.parquet"

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace a JSON file in one move."""
        write_atomically(self.path / name, json_text(content, indent=2))

    def write_status(self, status: Status, reason: str, **facts: Any) -> None:
        """Say how the run stands: torchrun's exit code tells nothing of a worker's."""
        self.write_json("status.json", {"status": status, "reason": reason, **facts})

    def status(self) -> dict[str, Any]:
        """Read status.json back; empty when there is none.

        Raises:
            RunFolderError: it is damaged, so that nobody knows what would be lost.
        """
        path = self.path / "status.json"
        if not path.exists():
            return {}
        try:
            return parse_mapping(path.read_bytes())
        except DamagedJsonError as error:
            raise RunFolderError(
                f"{path} is damaged ({error}); look what the folder holds, then begin again with --run.overwrite, or "
                "choose another --run.name"
            ) from error

    def clear(self) -> list[str]:
        """Delete what a run made, but for the mark and the lock; return the names of what stays: no run made it."""
        return remove_run_files(self.path)

    def sweep(self) -> None:
        """Delete the temporary files of writes that were killed; none but a run's own."""
        remove_temporary_files(self.path)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / METRICS).open("a") as file:
            file.write(json_text(row))

    def metrics(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl of one kind (`step` or `epoch`).

        Raises:
            RunFolderError: see `read_metrics`.
        """
        return [row for row in self.read_metrics() if row["kind"] == kind]

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl but for a torn last one; none where there is no such file.

        Raises:
            RunFolderError: a line is damaged; its number and the remedy are named.
        """
        path = self.path / METRICS
        try:
            return list(read_rows(path, _ROW)) if path.exists() else []
        except DamagedJsonError as error:
            raise RunFolderError(
                f"{path} is damaged ({error}); delete that line, begin again with --run.overwrite, or choose another "
                "--run.name"
            ) from error

    def rewind_metrics(self, step: int, epoch: int, num_bytes: int | None = None) -> list[dict[str, Any]]:
        """Drop what comes after `step` steps and `epoch` finished epochs, and a torn last line: it is written again.

        Args:
            step: optimizer steps taken.
            epoch: epochs finished.
            num_bytes: what the checkpoint knows of the file; only that is kept. None: by steps and epochs alone.

        Returns:
            The lines that are kept.

        Raises:
            RunFolderError: see `read_metrics`; the file is left as it is.
        """
        path = self.path / METRICS
        if not path.exists():
            return []
        rows = self.read_metrics()
        if num_bytes is not None:
            kept = path.read_bytes()[:num_bytes].decode()
            rows = rows[: kept.count("\n")]
        else:
            rows = [row for row in rows if row["step"] <= step and (row["kind"] != "epoch" or row["epoch"] < epoch)]
            kept = "".join(json_text(row) for row in rows)
        write_atomically(path, kept)
        return rows


def claim(config: RunConfig) -> tuple[RunFolder, io.TextIOWrapper]:
    """Make or take the run folder as `run.resume` and `run.overwrite` ask, lock it, and mark it as this job's.

    A job that its launcher started again (torchrun after a failure, Slurm after a requeue) goes on with what it made
    itself: `run.overwrite` then deletes nothing, and `run.resume never` refuses nothing. What another job made is no
    part of that.

    Returns:
        The folder and its open lock file; the lock goes when the file is closed or this process ends, however it ends.

    Raises:
        RunFolderError: another run holds it, or it exists and must not, or no run made it.
    """
    path, job = Path(config.dir) / config.name, JobOwner.from_environment()
    try:
        occupied = _is_occupied(path)
        is_restart = occupied and job.is_restart_of(read_owner(path))
    except OSError as error:
        raise RunFolderError(f"cannot look into the run folder {path}: {error.strerror}; see --run.dir") from error
    if occupied and config.resume == "never" and not config.overwrite and not is_restart:
        raise RunFolderError(
            f"{path} exists and --run.resume is never; choose another --run.name, resume it with --run.resume auto, "
            "or delete it with --run.overwrite"
        )
    lock = _lock(path, takeover=config.takeover)
    if not config.takeover and (holder := wait_for_lease(path)) is not None:
        lock.close()
        raise RunFolderError(f"{path} is in use by {holder}, which is alive; end it, or choose another --run.name")
    folder = RunFolder(path, is_restart=is_restart)
    try:
        write_mark(path, read_owner(path))  # a folder half cleared stays a run's, and is not yet this job's
        if config.overwrite and not is_restart:
            folder.clear()
        write_mark(path, job)
    except OSError as error:
        lock.close()
        raise RunFolderError(describe_storage_failure(error, path)) from error
    return folder, lock


def goes_on(config: RunConfig) -> bool:
    """Whether a start goes on with what a run has saved in its folder, or begins one. Every rank finds the same."""
    path = Path(config.dir) / config.name
    begins = config.overwrite or config.resume == "never"
    if begins and not JobOwner.from_environment().is_restart_of(read_owner(path)):
        return False
    return any(path.glob("checkpoints/step=*/manifest.json"))


def kept_listing(config: RunConfig) -> Path | None:
    """Return the folder of the listings of a run that goes on; None where one begins."""
    listing = Path(config.dir) / config.name / LISTING
    return listing if goes_on(config) and listing.is_dir() else None


def _lock(path: Path, *, takeover: bool) -> io.TextIOWrapper:
    """Make a folder if need be and lock it. The lock file is never emptied: through a hard link it may be another's.

    With `takeover` a lock that is held from another host does not count: a server may keep that of a host that is gone.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.fdopen(os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
    except OSError as error:
        if error.errno == errno.ELOOP and (path / LOCK).is_symlink():
            raise RunFolderError(f"{path / LOCK} is a link, which no run makes; delete it") from error
        raise RunFolderError(f"cannot write the run folder {path}: {error.strerror}; see --run.dir") from error
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by loader workers
    except OSError as error:
        holder = read_lease(path)
        if takeover and holder is not None and holder.is_elsewhere:
            return lock
        lock.close()
        by = f"{holder}" if holder is not None else "another run"
        raise RunFolderError(f"{path} is in use by {by}; choose another --run.name") from error
    return lock


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all, also after a power failure."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _is_occupied(path: Path) -> bool:
    """Whether a folder holds a run; it need not exist.

    Raises:
        RunFolderError: it is a file, or holds something that no run made.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file, not a run folder; choose another --run.name")
    if not path.is_dir() or holds_nothing(path):
        return False
    if not is_run_folder(path):
        raise RunFolderError(
            f"{path} exists and is no run folder (no run left its mark, {MARK}); nothing in it was touched; "
            "choose another --run.name"
        )
    return True


def finite_or_none(value: Any) -> Any:
    """Return `value` with None for every float, in mappings and lists too, that is not finite: JSON has none of those.

    A named tuple, such as an estimate with its interval, becomes a mapping of its fields.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(item) for item in value]
    return value


def json_text(content: Mapping[str, Any], indent: int | None = None) -> str:
    """Return JSON text with an end of line; a number that is not finite is null, and what JSON cannot hold is its text."""
    return json.dumps(finite_or_none(content), indent=indent, default=str, allow_nan=False) + "\n"
