"""The C++ library: built once, kept with its hash, and never loaded where it is not what was built here."""

import ctypes
import multiprocessing
import os
import shutil
import stat
import time
import warnings
from pathlib import Path

import pytest

from rlpheads.kernels import native

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, native.COMPILERS)), reason="there is no C++ compiler on this machine"
)


@pytest.fixture
def quick(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Source of a library of one function, in place of ours: what is tested is the cache."""
    source = tmp_path_factory.mktemp("source") / "tile_pass.cpp"
    source.write_text('extern "C" int rlpheads_panel() { return 64; }\n')
    monkeypatch.setattr(native, "CPP_SOURCES", (source,))
    monkeypatch.setattr(native, "CPP_HEADERS", ())
    return source


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def load_anew() -> ctypes.CDLL | None:
    native.load_library.cache_clear()
    try:
        return native.load_library()
    finally:
        native.load_library.cache_clear()


def load_without_warning() -> ctypes.CDLL:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        library = load_anew()
    assert library is not None
    return library


def kept_library(cache_home: Path) -> Path:
    (path,) = (cache_home / "rlpheads").glob("*.so")
    return path


def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands of the compiler from here on, those that ask for its version left out."""
    commands: list[list[str]] = []
    run_compiler = native._run_compiler

    def counted(command: list[str]) -> str:
        if command[-1] != "--version":
            commands.append(command)
        return run_compiler(command)

    monkeypatch.setattr(native, "_run_compiler", counted)
    return commands


# ---------------------------------------------------------------------------------------------------------- what is kept


@needs_compiler
def test_the_second_process_loads_what_the_first_one_built(quick, cache_home, monkeypatch) -> None:
    builds = count_builds(monkeypatch)
    assert load_without_warning().rlpheads_panel() > 0
    assert load_without_warning().rlpheads_panel() > 0
    assert len(builds) == 1
    folder = cache_home / "rlpheads"
    assert {path.suffix for path in folder.iterdir()} == {".so", ".sha256"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def put(library: Path, content: bytes) -> None:
    """Put another file in its place: this process has loaded the old one, and runs its code once more at its end."""
    library.unlink()
    library.write_bytes(content)


def cut(library: Path, record: Path) -> None:
    content = library.read_bytes()
    put(library, content[: len(content) // 3])


def empty(library: Path, record: Path) -> None:
    put(library, b"")


def put_another_library(library: Path, record: Path) -> None:
    """One that loads, and has none of our functions."""
    source = library.with_name("other.cpp")
    source.write_text('extern "C" int other() { return 1; }\n')
    native._run_compiler([*native.compiler_command(), "-shared", "-fPIC", str(source), "-o", str(library)])
    source.unlink()


def flip_a_bit(library: Path, record: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    put(library, bytes(content))


def drop_the_record(library: Path, record: Path) -> None:
    record.unlink()


def put_a_record_of_other_sources(library: Path, record: Path) -> None:
    record.write_text(record.read_text().splitlines()[0] + "\nbuilt from " + "0" * 64 + "\n")


def put_a_record_that_is_no_text(library: Path, record: Path) -> None:
    record.write_bytes(b"\xff\xfe")


@pytest.mark.long
@needs_compiler
@pytest.mark.parametrize(
    "damage",
    [
        *(cut, empty, put_another_library, flip_a_bit),
        *(drop_the_record, put_a_record_of_other_sources, put_a_record_that_is_no_text),
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_library_is_built_anew_and_not_loaded(damage, quick, cache_home, monkeypatch) -> None:
    """Loading one that was cut off would end this process by SIGBUS."""
    load_without_warning()
    library = kept_library(cache_home)
    damage(library, library.with_name(f"{library.name}.sha256"))
    builds = count_builds(monkeypatch)
    assert load_without_warning().rlpheads_panel() > 0
    assert len(builds) == 1
    assert load_without_warning().rlpheads_panel() > 0
    assert len(builds) == 1, "the file was put right"


@needs_compiler
@pytest.mark.parametrize("changed", ["version", "flags", "source"])
def test_other_sources_flags_or_compiler_make_another_library(changed, quick, tmp_path, monkeypatch) -> None:
    before = native.make_recipe()
    if changed == "version":
        run_compiler = native._run_compiler
        monkeypatch.setattr(native, "_run_compiler", lambda command: f"{run_compiler(command)} and a patch")
    elif changed == "flags":
        monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-g"))
    else:
        source = tmp_path / "tile_pass.cpp"
        source.write_text(native.CPP_SOURCES[0].read_text() + "\n")
        monkeypatch.setattr(native, "CPP_SOURCES", (source,))
    after = native.make_recipe()
    assert after.fingerprint != before.fingerprint
    assert after.library_name != before.library_name


@needs_compiler
def test_what_killed_builds_left_is_deleted_and_running_builds_are_not(quick, cache_home) -> None:
    folder = cache_home / "rlpheads"
    hours_ago = time.time() - 2 * native.ABANDONED_SECONDS
    for name, modified in (("building-killed", hours_ago), ("tmpabcd1234", hours_ago), ("building-now", time.time())):
        (folder / name).mkdir(parents=True)
        (folder / name / "tile_pass.so").write_bytes(b"half")
        os.utime(folder / name, (modified, modified))
    (folder / "tiles.json").write_text("{}")
    load_without_warning()
    assert {path.name for path in folder.iterdir() if path.suffix not in {".so", ".sha256"}} == {
        *("building-now", "tiles.json")
    }


def load_in_a_process(source: Path) -> int:
    native.CPP_SOURCES, native.CPP_HEADERS = (source,), ()
    return load_without_warning().rlpheads_panel()


@pytest.mark.long
@needs_compiler
@pytest.mark.parametrize("is_damaged", [False, True])
def test_processes_that_start_together_build_one_library(is_damaged: bool, quick: Path, cache_home: Path) -> None:
    if is_damaged:
        load_without_warning()
        cut(kept_library(cache_home), Path())
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(load_in_a_process, [quick] * 3, chunksize=1) == [64] * 3
    assert {path.suffix for path in (cache_home / "rlpheads").iterdir()} == {".so", ".sha256"}
    recipe, library = native.make_recipe(), kept_library(cache_home)
    assert library.with_name(recipe.record_name).read_text() == recipe.record(library)


@needs_compiler
def test_a_library_that_cannot_be_kept_is_used_all_the_same(quick, cache_home, monkeypatch) -> None:
    def full_disk(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(native, "_flush", full_disk)
    with pytest.warns(RuntimeWarning, match="compiled anew in every process: .*No space left on device") as caught:
        library = load_anew()
    assert library is not None
    assert library.rlpheads_panel() > 0
    assert len(caught) == 1
    assert not list((cache_home / "rlpheads").iterdir())


# ------------------------------------------------------------------------------------------------------ without a compiler


def test_no_compiler_is_one_warning_that_names_the_remedy(cache_home, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(cache_home))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.warns(RuntimeWarning, match=r"plain PyTorch .*no C\+\+ compiler \(g\+\+.*name it in CXX") as caught:
        assert load_anew() is None
    assert len(caught) == 1


@pytest.mark.parametrize("knows_its_version", [False, True])
def test_a_compiler_that_fails_is_one_warning_with_its_own_words(knows_its_version, cache_home, monkeypatch) -> None:
    compiler = cache_home / "broken"
    answer = '[ "$1" = --version ] && exit 0\n' if knows_its_version else ""
    compiler.write_text(f"#!/bin/sh\n{answer}echo 'tile_pass.cpp:1: fatal error: disk on fire' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.warns(RuntimeWarning, match="broken failed: .*disk on fire") as caught:
        assert load_anew() is None
    assert len(caught) == 1
    assert not list(cache_home.glob("rlpheads/*"))
