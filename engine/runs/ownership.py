"""What in a run folder is a run's own: its mark with the job that owns it, and the files that a run makes.

A folder without the mark is somebody else's and is never used. Of a run's folder only the files named here are ever
removed, so that notes or results that were put beside them stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rlpheads.engine.config.launcher_variables import restart_count, slurm_job, torchrun_job
from rlpheads.engine.distributed.meeting_places import NOTE
from rlpheads.engine.runs.request_files import SAVE_REQUEST, STOP_REQUEST
from rlpheads.memorization.atomic_file import atomic_file
from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping

LOCK = "run.lock"
MARK = ".rlpheads-run"
"""File that says that a folder is a run's, and which job claimed it last."""

RUN_FILES = (
    *("config.yaml", "environment.json", "status.json", "metrics.jsonl", "summary.csv", "canaries.parquet"),
    "samples.parquet",
    *(
        "failed.rank*.json",
        "lease.json",
        "hang.rank*.txt",
        "hang.rank*.json",
        NOTE,
        "ledger/epoch=*/*.parquet",
        "memory.json",
        "truth.json",
        "truth/networks=*.npz",
        *(f"figures/rla_{name}.{kind}" for name in ("by_*", "heat_map") for kind in ("png", "svg", "pdf", "txt")),
        "report.html",
        "audit/step=*.json",
    ),
    *("listing/*.npz", "listing/*.json"),
    *("weights/last.safetensors", "weights/last_ema.safetensors"),
    *("weights/best.safetensors", "weights/epoch=*.safetensors", SAVE_REQUEST, STOP_REQUEST),
    *("tensorboard/events.out.tfevents.*", "profile/steps=*.json"),
    *(
        f"checkpoints/{folder}/{file}"
        for folder in ("step=*", ".step=*", "damaged.step=*")
        for file in ("__*.distcp", ".metadata*", "manifest.json")
    ),
    *("wandb/run_id.txt", "wandb/debug*.log", "wandb/latest-run", "wandb/settings", "wandb/run-*/**"),
    "wandb/offline-run-*/**",
)
"""Files that a run or its audit makes, as patterns part by part; `**`: whatever lies below."""

_TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp")  # of a write that was killed: rlpheads.memorization.atomic_file


@dataclass(frozen=True)
class JobOwner:
    """The job that claimed a run folder, as its launchers name it.

    Attributes:
        slurm: Slurm's number of the job.
        requeues: how often Slurm had started it again.
        torchrun: the torchrun that started the process.
    """

    slurm: str | None = None
    requeues: int = 0
    torchrun: str | None = None

    @classmethod
    def from_environment(cls) -> JobOwner:
        """Return the job of this process."""
        return cls(slurm_job(), restart_count("SLURM_RESTART_COUNT"), torchrun_job())

    def is_restart_of(self, before: JobOwner) -> bool:
        """Whether this is the job that was there before, started again by its launcher.

        A number of Slurm's alone does not tell: one allocation may start many runs. It was requeued since, too.
        """
        if self.slurm != before.slurm:
            return False
        was_requeued = self.slurm is not None and self.requeues > before.requeues
        return was_requeued or (self.torchrun is not None and self.torchrun == before.torchrun)


def is_run_folder(path: Path) -> bool:
    """Whether a run made this folder: it has the mark, or, from before there was one, what only a run writes."""
    if (path / MARK).is_file():
        return True
    if not (path / "config.yaml").is_file():
        return False
    status = _read_mapping(path / "status.json")
    manifests = (_read_mapping(each) for each in path.glob("checkpoints/step=*/manifest.json"))
    return {"status", "reason"} <= status.keys() or any({"step", "files"} <= each.keys() for each in manifests)


def read_owner(path: Path) -> JobOwner:
    """Return the job that claimed a run folder last; one without names where that is not known."""
    found = _read_mapping(path / MARK).get("owner")
    known = {each.name for each in fields(JobOwner)}
    owner = {name: value for name, value in found.items() if name in known} if isinstance(found, dict) else {}
    return JobOwner(**owner) if isinstance(owner.get("requeues", 0), int) else JobOwner()


def write_mark(path: Path, owner: JobOwner) -> None:
    """Mark a folder as a run's, claimed by a job."""
    with atomic_file(path / MARK) as temporary:
        temporary.write_text(json.dumps({"made_by": "rlpheads", "owner": asdict(owner)}) + "\n")


def holds_nothing(path: Path) -> bool:
    """Whether a folder is empty but for what a start leaves that ended before it wrote anything else."""
    return all(entry.name in (LOCK, MARK) or _made_name(entry.name) == MARK for entry in path.iterdir())


def remove_run_files(path: Path) -> list[str]:
    """Delete what a run made, but for its mark and lock; return what stays, by its name in the folder.

    A link in the place of such a file or folder goes, never what it points at.
    """
    return [name for name in _remove_below(path, ()) if name not in (LOCK, MARK)]


def remove_temporary_files(path: Path) -> None:
    """Delete what writes that were killed left of a run's own files.

    Those of an audit stay: it holds no lock, and may be writing. What killed saves of checkpoints left is theirs to delete.
    """
    for file in path.rglob(".*.tmp"):
        parts = file.relative_to(path).parts
        is_temporary = _TEMPORARY.fullmatch(file.name) and file.is_file() and not file.is_symlink()
        if is_temporary and parts[0] not in ("audit", "checkpoints") and _is_made(parts, whole=True):
            file.unlink()


def _remove_below(folder: Path, parents: tuple[str, ...]) -> Iterator[str]:
    for entry in sorted(folder.iterdir()):
        parts = (*parents, entry.name)
        is_folder = entry.is_dir() and not entry.is_symlink()
        if not _is_made(parts):
            yield "/".join(parts) + "/" * is_folder
        elif is_folder:
            stays = list(_remove_below(entry, parts))
            yield from stays
            if not stays:
                entry.rmdir()
        elif _is_made(parts, whole=not entry.is_symlink()):
            entry.unlink()
        else:
            yield "/".join(parts)


def _is_made(parts: tuple[str, ...], *, whole: bool = False) -> bool:
    """Whether a run makes a file of this name or, unless it must be `whole`, a folder of it."""
    return any(_matches((*parts[:-1], _made_name(parts[-1])), pattern.split("/"), whole) for pattern in RUN_FILES)


def _matches(parts: tuple[str, ...], pattern: list[str], whole: bool) -> bool:
    below = pattern[-1] == "**"
    if below and len(parts) >= len(pattern):
        parts, pattern = parts[: len(pattern) - 1], pattern[:-1]
    elif len(parts) > len(pattern) or (whole and len(parts) < len(pattern)):
        return False
    return all(fnmatchcase(part, each) for part, each in zip(parts, pattern, strict=False))


def _made_name(name: str) -> str:
    """Return the name that a temporary file was to get; any other name as it is."""
    temporary = _TEMPORARY.fullmatch(name)
    return temporary.group(1) if temporary else name


def _read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping of a JSON file; empty where it cannot be read as one."""
    try:
        return parse_mapping(path.read_bytes())
    except (OSError, DamagedJsonError):
        return {}
