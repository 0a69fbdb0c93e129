"""Which folders a scan lists: what is read of a tree when its listing is not taken from elsewhere."""

import os
from pathlib import Path

import pytest


class ListedFolders:
    """Counts the class folders, of these names, whose entries this process asks for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, classes: str = "abc"):
        self.classes = classes
        self.folders: list[Path] = []
        scandir = os.scandir

        def counted(folder):
            if not isinstance(folder, int):  # an open folder, which is being deleted
                self.folders.append(Path(os.fsdecode(folder)))
            return scandir(folder)

        monkeypatch.setattr(os, "scandir", counted)

    def count(self) -> int:
        """Return how many class folders were listed since the last call."""
        listed, self.folders = [folder for folder in self.folders if folder.name in list(self.classes)], []
        return len(listed)
