"""The folder of a study: marked as a study's when it is made, so that nothing is written among files of somebody else."""

from __future__ import annotations

from pathlib import Path

from rlpheads.engine.config.errors import UserError
from rlpheads.engine.runs.folder import write_atomically
from rlpheads.engine.runs.ownership import is_run_folder

MARK = ".rlpheads-study"
"""File that says that a folder is a study's: its runs, settings, logs and results lie there."""


class StudyFolderError(UserError):
    """The folder of a study cannot be used; the message says what to do."""


def claim_study_folder(folder: Path) -> None:
    """Make and mark the folder of a study, or take one that is a study's already.

    Raises:
        StudyFolderError: it holds files and no study, or it cannot be made.
    """
    try:
        if folder.exists() and not _is_study_folder(folder) and any(folder.iterdir()):
            raise StudyFolderError(
                f"--out: {folder} holds files, and no study made it (it has no {MARK}); allowed: a folder that is empty, "
                "new, or of this study"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MARK).exists():
            write_atomically(folder / MARK, '{"made_by": "rlpheads study"}\n')
    except OSError as error:
        raise StudyFolderError(f"--out: {folder} cannot be used: {error.strerror}") from error


def _is_study_folder(folder: Path) -> bool:
    """Whether a study made this folder: it has the mark or, from before there was one, the settings of a run beside it."""
    planned = (path.stem for path in folder.glob("settings/*.yaml"))
    return (folder / MARK).is_file() or any(is_run_folder(folder / name) for name in planned)
