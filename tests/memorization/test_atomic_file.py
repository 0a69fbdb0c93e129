"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from rlpheads.memorization.atomic_file import atomic_file


def write(path: Path, *, fails: bool = False) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("after")
        if fails:
            raise ValueError("no")


def write_without_folder(path: Path) -> None:
    with atomic_file(path) as temporary:
        path.parent.rmdir()
        temporary.write_text("after")


def test_a_body_that_fails_leaves_what_there_was(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(ValueError, match="no"):
        write(path, fails=True)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_that_was_to_be_written(tmp_path):
    folder, missing = tmp_path / "folder", tmp_path / "gone" / "file.txt"
    folder.mkdir()
    with pytest.raises(IsADirectoryError) as renamed:
        write(folder)
    with pytest.raises(FileNotFoundError) as opened:
        write_without_folder(missing)
    for error, path in ((renamed.value, folder), (opened.value, missing)):
        assert str(error).endswith(f": '{path}'")
        assert ".tmp" not in str(error)
