"""The folder of a run: claimed by one run at a time, and written so that a reader never sees half a file."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from rlpheads.engine.config.launcher_variables import is_restarted
from rlpheads.engine.config.run import RunConfig
from rlpheads.memorization.atomic_file import atomic_file

Status = Literal["running", "done", "requeue", "failed"]


LOCK = "run.lock"


class RunFolderError(ValueError):
    """The run folder cannot be used as asked; the message says what to do."""


class RunFolder:
    """A run folder that this process holds the lock of.

    Contents: `config.yaml`, `environment.json`, `status.json`, `metrics.jsonl`, `summary.csv`, `tensorboard/`, `ledger/`,
    `checkpoints/`, `figures/`.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.path / "figures"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's files."""
        return self.path / "tensorboard"

    def ledger(self, epoch: int, phase: str) -> Path:
        """Return the path of one ledger file; `phase` is running, clean or heldout."""
        return self.path / "ledger" / f"epoch={epoch:04d}" / f"{phase}.parquet"

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace a JSON file in one move."""
        write_atomically(self.path / name, json.dumps(content, indent=2, default=str) + "\n")

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
            return dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise RunFolderError(
                f"{path} is damaged ({error}); look what the folder holds, then begin again with --run.overwrite, or "
                "choose another --run.name"
            ) from error

    def clear(self) -> None:
        """Delete everything but the lock; `config.yaml`, which says that this is a run folder, goes last."""
        entries = [entry for entry in self.path.iterdir() if entry.name != LOCK]
        for entry in sorted(entries, key=lambda entry: entry.name == "config.yaml"):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def metrics(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl of one kind (`step` or `epoch`)."""
        path = self.path / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [row for row in rows if row["kind"] == kind]

    def rewind_metrics(self, step: int, epoch: int) -> list[dict[str, Any]]:
        """Drop what comes after `step` steps and `epoch` finished epochs, and a torn last line: it is written again.

        Returns:
            The lines that are kept.
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        rows = [row for line in path.read_text().splitlines() if (row := _parse_row(line)) and row["step"] <= step]
        rows = [row for row in rows if row["kind"] != "epoch" or row["epoch"] < epoch]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def write_summary(self) -> None:
        """Derive summary.csv from the epoch lines of metrics.jsonl: timm's columns first, accuracies in [0, 1]."""
        rows = [_spread_lists(row) for row in self.metrics("epoch")]
        first = ["epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr"]
        columns = first + sorted({name for row in rows for name in row} - {*first, "kind"})
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / "summary.csv", text.getvalue())


def claim(config: RunConfig) -> tuple[RunFolder, io.TextIOWrapper]:
    """Make or take the run folder as `run.resume` and `run.overwrite` ask, and lock it.

    A process that a launcher started again (torchrun after a failure, Slurm after a requeue) goes on with what its
    first start made: `run.overwrite` then deletes nothing, and `run.resume never` refuses nothing.

    Returns:
        The folder and its open lock file; the lock goes when the file is closed or this process ends, however it ends.

    Raises:
        RunFolderError: another run holds it, or it exists and must not, or holds something that is not a run.
    """
    path = Path(config.dir) / config.name
    try:
        occupied = _is_occupied(path)
    except OSError as error:
        raise RunFolderError(f"cannot look into the run folder {path}: {error.strerror}; see --run.dir") from error
    if occupied and not (path / "config.yaml").exists():
        raise RunFolderError(f"{path} exists and is no run folder (it has no config.yaml); choose another --run.name")
    restarted = is_restarted()
    if occupied and config.resume == "never" and not config.overwrite and not restarted:
        raise RunFolderError(
            f"{path} exists and --run.resume is never; choose another --run.name, resume it with --run.resume auto, "
            "or delete it with --run.overwrite"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK).open("w")
    except OSError as error:
        raise RunFolderError(f"cannot write the run folder {path}: {error.strerror}; see --run.dir") from error
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by loader workers
    except OSError as error:
        lock.close()
        raise RunFolderError(f"{path} is in use by another run; choose another --run.name") from error
    folder = RunFolder(path)
    if config.overwrite and not restarted:
        folder.clear()
    return folder, lock


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all, also after a power failure."""
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def _is_occupied(path: Path) -> bool:
    """Whether a folder holds more than a lock; it need not exist."""
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file, not a run folder; choose another --run.name")
    return path.is_dir() and any(entry.name != LOCK for entry in path.iterdir())


def _parse_row(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _spread_lists(row: Mapping[str, Any]) -> dict[str, Any]:
    """Spread lists over numbered columns: {"rla_clean": [a, b]} becomes rla_clean_0, rla_clean_1."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        items: Iterable[tuple[str, Any]] = [(name, value)]
        if isinstance(value, list):
            items = [(f"{name}_{position}", item) for position, item in enumerate(value)]
        flat.update(items)
    return flat
