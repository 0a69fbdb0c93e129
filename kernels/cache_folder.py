"""The package's folder in the user's cache, and whether what lies there may be loaded into the process."""

import os
import stat
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path | None:
    """Rlpheads under XDG_CACHE_HOME, by default under ~/.cache; None where the user has no home folder."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "rlpheads"
    try:
        home = Path.home()
    except RuntimeError:  # HOME is unset, and the user has no entry in passwd, as under `docker run --user`
        return None
    return home / ".cache" / "rlpheads"


@contextmanager
def folder_for_code(names: Sequence[str]) -> Iterator[Path]:
    """The cache folder, for files of these names that are to be loaded as code; made if need be.

    Where it cannot be used, or another user could have written what lies there, a private folder takes its place, which is
    deleted in the end, and a warning says why.
    """
    folder = cache_folder()
    reason = "the user has no home folder" if folder is None else unusable_reason(folder, names)
    if folder is not None and reason is None:
        yield folder
        return
    warn_not_kept(f"{reason}; name a folder of your own in XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory(prefix="rlpheads-") as private:
        yield Path(private)


def unusable_reason(folder: Path, names: Sequence[str]) -> str | None:
    """Why files of these names in the folder may not be loaded, or none be written; None if they may."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if reason := _replaceable_reason(folder.parent):
            return reason
        paths = [folder, *(folder / name for name in names if (folder / name).exists())]
        if reason := next(filter(None, map(_foreign_reason, paths)), None):
            return reason
    except OSError as error:
        return str(error)
    return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written"


def warn_not_kept(reason: str) -> None:
    """Say that every process compiles anew."""
    warnings.warn(
        f"rlpheads: the C++ of the loss is compiled anew in every process: {reason}", RuntimeWarning, stacklevel=2
    )


def _foreign_reason(path: Path) -> str | None:
    status = path.stat()
    if status.st_uid != os.getuid():
        return f"{path} belongs to user {status.st_uid}, and this process runs as user {os.getuid()}"
    return f"every user may write {path}" if status.st_mode & stat.S_IWOTH else None


def _replaceable_reason(parent: Path) -> str | None:
    """Why others could put a folder of theirs in the place of one that lies in `parent`."""
    mode = parent.stat().st_mode
    return f"every user may rename what lies in {parent}" if mode & stat.S_IWOTH and not mode & stat.S_ISVTX else None
