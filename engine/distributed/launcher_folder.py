"""What ranks tell their launcher beside their exit codes: after some, none is started again, as torch's would any not 0.

`rlpheads train` names a folder in the ranks' environment, and tells there whether it was told to stop.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_FOLDER = "RLPHEADS_LAUNCHER"
"""Environment variable with the folder's path."""


def open_launcher_folder(folder: str) -> None:
    """Let the ranks that this process starts leave their codes in a folder."""
    os.environ[_FOLDER] = folder


def announce_stop() -> None:
    """Say that this launcher was told to stop."""
    if (path := _path("stopping")) is not None:
        path.touch()


def announce_hang() -> None:
    """Say that ranks hung: the launcher will have to kill some."""
    if (path := _path("hang")) is not None:
        path.touch()


def was_hang() -> bool:
    """Whether ranks of this launcher hung."""
    return (path := _path("hang")) is not None and path.exists()


def read_code() -> int | None:
    """Return the code that a rank of this launcher has left, if any."""
    with suppress(OSError, ValueError):
        return int(path.read_text()) if (path := _path("code")) is not None else None
    return None


def leave_refusal(code: int) -> None:
    """Leave the code of a rank that was refused its settings: one that is started again ends with it."""
    if (path := _path("code")) is not None:
        path.write_text(f"{code}\n")


def leave_stop(code: int) -> bool:
    """Leave the code of a rank that stopped, where this launcher was told to; return whether it was.

    Where another node's was, the ranks of this one are to be started again, and wait for that node.
    """
    if (stopping := _path("stopping")) is None or not stopping.exists():
        return False
    leave_refusal(code)
    return True


def _path(name: str) -> Path | None:
    folder = os.environ.get(_FOLDER)
    return Path(folder) / name if folder else None
