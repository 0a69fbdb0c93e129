"""A folder as a power failure could leave it: at every file operation on the way, without what was not on the disk yet."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

OPERATIONS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")
"""What is recorded; writes count when they are synced, and what was not is dropped."""

Tree = tuple[tuple[str, bytes | None], ...]
"""Names in a folder, sorted, with the content of files; None for a folder."""


@dataclass
class RecordedFolder:
    """The states of a folder, one before each operation and one at the end; equal neighbours are one."""

    path: Path
    states: list[Tree] = field(default_factory=list)
    _synced: dict[int, bytes] = field(default_factory=dict)

    def note(self) -> None:
        """Record what would be there if the power failed now."""
        found: list[tuple[str, bytes | None]] = []
        for path in sorted(self.path.rglob("*")):
            content = None if path.is_dir() else self._synced.get(path.stat().st_ino, b"")
            found.append((str(path.relative_to(self.path)), content))
        if not self.states or self.states[-1] != tuple(found):
            self.states.append(tuple(found))

    def sync(self, descriptor: int) -> None:
        """Record that a file's content is on the disk."""
        link = Path(f"/proc/self/fd/{descriptor}")
        if link.is_file():
            self._synced[os.fstat(descriptor).st_ino] = link.read_bytes()

    def forget(self, path: str | Path, folder: int | None) -> None:
        """Record that a file goes, whose inode another may get."""
        self._synced.pop(os.stat(path, dir_fd=folder, follow_symlinks=False).st_ino, None)


@contextmanager
def recorded(path: Path) -> Iterator[RecordedFolder]:
    """Record what happens in a folder, whose present content is on the disk."""
    folder = RecordedFolder(path)
    for file in path.rglob("*"):
        if file.is_file():
            folder._synced[file.stat().st_ino] = file.read_bytes()
    originals = {name: getattr(os, name) for name in OPERATIONS}

    def recording(name: str):
        def operation(*args, **options):
            folder.note()
            if name == "unlink":
                folder.forget(args[0], options.get("dir_fd"))
            result = originals[name](*args, **options)
            if name == "fsync":
                folder.sync(args[0])
            return result

        return operation

    with mock.patch.multiple(os, **{name: recording(name) for name in OPERATIONS}):
        yield folder
    folder.note()


def write_tree(tree: Tree, path: Path) -> None:
    """Make a folder that holds what a recorded state says; another one there is replaced."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    for name, content in tree:
        if content is None:
            (path / name).mkdir()
        else:
            (path / name).write_bytes(content)
