"""Files by which a user asks a running training for something: `touch RUN/save.request`, `touch RUN/stop.request`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

SAVE_REQUEST = "save.request"
STOP_REQUEST = "stop.request"
_EVERY_SECONDS = 0.5  # a look costs a message to the server of a network file system


class RequestFiles:
    """The requests in a run folder; the main rank looks for them, and removes what it found.

    Args:
        folder: the run folder.
        now: seconds on the host.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.monotonic):
        self._folder = folder
        self._now = now
        self._looked = -_EVERY_SECONDS

    def clear(self) -> None:
        """Remove requests to a run that has ended."""
        for name in (SAVE_REQUEST, STOP_REQUEST):
            (self._folder / name).unlink(missing_ok=True)

    def take(self) -> frozenset[str]:
        """Return the names of the requests that were found now, each once; looks at most twice a second."""
        if self._now() - self._looked < _EVERY_SECONDS:
            return frozenset()
        self._looked = self._now()
        found = [self._folder / name for name in (SAVE_REQUEST, STOP_REQUEST) if (self._folder / name).exists()]
        for path in found:
            path.unlink(missing_ok=True)
        return frozenset(path.name for path in found)
