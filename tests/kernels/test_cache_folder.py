"""Whether the user's cache folder may hold code that is loaded, and what takes its place where it may not."""

import os
import shutil
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from rlpheads.kernels import native
from rlpheads.kernels.cache_folder import cache_folder, folder_for_code, unusable_reason


def be_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: user)


def have_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `docker run --user 1234`."""

    def no_entry(user: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)


def test_a_folder_of_ones_own_is_used_and_made_for_its_owner_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    with folder_for_code(["a.so"]) as folder:
        assert folder == cache_folder() == tmp_path / "new" / "rlpheads"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_default_lies_in_the_home_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rlpheads"
    have_no_home(monkeypatch)
    assert cache_folder() is None


def open_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder.chmod(0o777)
    return f"every user may write {folder};"


def open_parent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder.parent.chmod(0o777)
    return f"every user may rename what lies in {folder.parent};"


def open_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "a.so").chmod(0o666)
    return f"every user may write {folder / 'a.so'};"


def foreign_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    owner = os.getuid()
    be_another_user(monkeypatch)
    return f"{folder} belongs to user {owner}, and this process runs as user {owner + 1};"


def foreign_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    real_stat = Path.stat

    def stat_of_another_user(path: Path, **options: bool) -> os.stat_result:
        found = real_stat(path, **options)
        return os.stat_result((*found[:4], found.st_uid + 1, *found[5:])) if path.name == "a.so" else found

    monkeypatch.setattr(Path, "stat", stat_of_another_user)
    return f"{folder / 'a.so'} belongs to user {os.getuid() + 1}, and"


def file_in_place_of_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shutil.rmtree(folder)
    folder.write_text("mine")
    return "File exists"


def unwritable_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(os, "access", lambda *_: False)
    return f"{folder} cannot be written;"


@pytest.mark.parametrize(
    "spoil",
    [
        *(open_folder, open_parent, open_library, foreign_folder, foreign_library),
        *(file_in_place_of_folder, unwritable_folder),
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_what_others_could_have_written_is_not_used(spoil: Callable[..., str], tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "rlpheads"
    folder.mkdir(parents=True)
    (folder / "a.so").write_bytes(b"theirs")
    reason = spoil(folder, monkeypatch)
    with ExitStack() as left:
        with pytest.warns(RuntimeWarning, match="compiled anew in every process") as caught:
            private = left.enter_context(folder_for_code(["a.so"]))
        assert private != folder
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert not list(private.iterdir())
    assert "in XDG_CACHE_HOME" in str(caught[0].message)
    assert reason in str(caught[0].message)
    assert len(caught) == 1
    assert not private.exists()


def test_a_folder_within_one_like_tmp_is_ones_own(tmp_path: Path) -> None:
    """The sticky bit keeps others from renaming it."""
    tmp_path.chmod(0o1777)
    assert unusable_reason(tmp_path / "rlpheads", ["a.so"]) is None


@pytest.mark.skipif(not any(map(shutil.which, native.COMPILERS)), reason="there is no C++ compiler on this machine")
@pytest.mark.parametrize("spoil", [have_no_home, be_another_user], ids=lambda spoil: spoil.__name__)
def test_the_loss_is_compiled_all_the_same(spoil, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "tile_pass.cpp"
    source.write_text('extern "C" int rlpheads_panel() { return 64; }\n')
    monkeypatch.setattr(native, "CPP_SOURCES", (source,))
    monkeypatch.setattr(native, "CPP_HEADERS", ())
    (tmp_path / "rlpheads").mkdir()
    spoil(monkeypatch)
    native.load_library.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="compiled anew in every process") as caught:
            library = native.load_library()
    finally:
        native.load_library.cache_clear()
    assert library is not None
    assert library.rlpheads_panel() > 0
    assert len(caught) == 1
    assert not list((tmp_path / "rlpheads").iterdir())
