"""What can go wrong with data: a dataset that is not as it must be, an image that cannot be read, a loader that fails."""

from __future__ import annotations

import os


class DatasetError(ValueError):
    """A dataset that is not there, or not of the form it must have."""


class ImageReadError(ValueError):
    """An image that cannot be read.

    It travels from a loader worker unchanged: the arguments below are all it holds.

    Attributes:
        index: Canonical index of the sample.
        path: Path of its file.
        reason: What went wrong.
    """

    def __init__(self, index: int, path: str, reason: str) -> None:
        super().__init__(index, path, reason)
        self.index = index
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        printable = os.fsencode(self.path).decode("utf-8", "backslashreplace")
        return f"image {self.index} ({printable}) cannot be read: {self.reason}"


class LoaderError(RuntimeError):
    """A loader that cannot go on, such as one whose worker died."""
