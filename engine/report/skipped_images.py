"""Notices of images that could not be read and were skipped (`data.on_error: skip`)."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rlpheads.engine.terminal.text import printable
from rlpheads.loaders.contract.errors import DatasetError, ImageReadError

NAMED_AT_MOST = 20


class SkipNotices:
    """Names the images that this rank left out on standard error: each once in a run, however often it is met.

    Args:
        quota: images above which the run is to end; None: no limit.
    """

    def __init__(self, quota: int | None = None) -> None:
        self._quota = quota
        self._met: set[tuple[int, str]] = set()

    def announce(self, errors: Iterable[ImageReadError]) -> None:
        """Name the images that were not met before; after the first `NAMED_AT_MOST` say once that the rest is counted.

        Raises:
            DatasetError: they are more than the quota.
        """
        for error in errors:
            identity = (error.index, error.path)
            if identity in self._met:
                continue
            self._met.add(identity)
            if len(self._met) <= NAMED_AT_MOST:
                print(f"skipped: {printable(error)}", file=sys.stderr, flush=True)
            if len(self._met) == NAMED_AT_MOST:
                print(
                    "skipped: any more are counted, but not named here: the ledger has them under status 2, and "
                    "`rlpheads verify` names them all",
                    file=sys.stderr,
                    flush=True,
                )
        self.check_quota(len(self._met))

    def check_quota(self, num_skipped: int) -> None:
        """Compare a number of images that were left out with `data.max_skipped`.

        Raises:
            DatasetError: they are more.
        """
        if self._quota is not None and num_skipped > self._quota:
            raise DatasetError(
                f"{num_skipped} images cannot be read, more than data.max_skipped: {self._quota}; is their disk there? "
                "Restore them, or start again with a larger --data.max_skipped: the run goes on from its last checkpoint"
            )
