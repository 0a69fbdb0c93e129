"""What a scan of a tree passes over, counted by kind and put into one line, so that no file vanishes without a word."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

THUMBNAIL_FOLDERS = frozenset({b"@eaDir"})
"""Folders in which network storage (Synology's) keeps small copies of the images beside them."""

_KINDS_SHOWN = 6
_LONGEST_SUFFIX = 8


class PassedOver:
    """Counts of what a scan passes over, by kind.

    Attributes:
        counts: How many entries of each kind, in words.
        thumbnails: Images in folders that mostly hold thumbnails; they are samples all the same.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.thumbnails = 0
        self._first_irregular = ""

    def add_hidden(self, is_folder: bool) -> None:
        """Count a file or folder whose name begins with a dot."""
        self.counts["hidden folder(s)" if is_folder else "hidden file(s)"] += 1

    def add_suffix(self, name: str) -> None:
        """Count a file whose suffix is not that of an image."""
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
        is_plain = len(suffix) <= _LONGEST_SUFFIX and suffix.isascii() and suffix[1:].isalnum()
        self.counts[suffix if is_plain else "of other names"] += 1

    def add_irregular(self, name: bytes) -> None:
        """Count a pipe, socket or device with the suffix of an image."""
        self.counts["pipe(s), socket(s) or device(s)"] += 1
        self._first_irregular = self._first_irregular or _printable(name)

    def remarks(self, root: Path) -> tuple[str, ...]:
        """Return one line on what was passed over, and one on thumbnails, where there is something to say."""
        lines = []
        if self.counts:
            lines.append(f"{_printable(os.fsencode(root))}: {self.counts.total():,} passed over: {self._kinds()}")
        if self.thumbnails:
            lines.append(
                f"{_printable(os.fsencode(root))}: {self.thumbnails:,} samples lie in folders named @eaDir, which mostly "
                "hold thumbnails of other samples: remove those folders if so"
            )
        return tuple(lines)

    def _kinds(self) -> str:
        common = self.counts.most_common()
        shown = [f"{count:,} {kind}" for kind, count in common[:_KINDS_SHOWN]]
        rest = sum(count for _, count in common[_KINDS_SHOWN:])
        first = f" (no file: {self._first_irregular})" if self._first_irregular else ""
        return ", ".join(shown) + (f", {rest:,} others" if rest else "") + first


def _printable(name: bytes) -> str:
    """Return a path as text without control characters."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
