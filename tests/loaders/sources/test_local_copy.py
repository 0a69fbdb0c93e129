"""Copies on a node's own disk: whole or continued, never taken from or left to somebody else, and made once."""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Queue

import pytest

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.sources import local_copy
from rlpheads.loaders.sources.local_copy import MARK, SENTINEL, LocalCopy, make_local_copy

NUM_FILES = 300
FORK = multiprocessing.get_context("fork")


def content(number: int) -> bytes:
    return b"%d;" % number * number


@pytest.fixture
def copy(tmp_path) -> LocalCopy:
    """300 files in three folders, the first of them empty and the last of some kilobytes."""
    source = tmp_path / "tree"
    files = []
    for number in range(NUM_FILES):
        name = f"train/{'abc'[number % 3]}/{number:03}.jpg"
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content(number))
        files.append((name.encode(), len(content(number))))
    (tmp_path / "scratch").mkdir()
    return LocalCopy(source, tmp_path / "scratch" / "tree-0", ["f00d"], files)


def quiet(num_bytes):
    pass


def is_whole(copy: LocalCopy) -> bool:
    found = {path.relative_to(copy.folder) for path in copy.folder.rglob("*") if path.is_file()}
    same = all((copy.folder / os.fsdecode(name)).read_bytes() == content(n) for n, (name, _) in enumerate(copy.files))
    return same and found == {Path(MARK), Path(SENTINEL), *(Path(os.fsdecode(name)) for name, _ in copy.files)}


def test_a_copy_is_whole_and_says_what_it_holds(copy):
    told = []
    assert make_local_copy(copy, told.append) == copy.num_bytes
    assert is_whole(copy)
    sentinel = json.loads((copy.folder / SENTINEL).read_text())
    assert sentinel == {"version": 1, "fingerprints": ["f00d"], "files": NUM_FILES, "bytes": copy.num_bytes}
    assert told == sorted(told)
    assert told[-1] <= copy.num_bytes


def test_a_whole_copy_is_taken_again_without_its_source(copy):
    make_local_copy(copy, quiet)
    shutil.rmtree(copy.source)
    assert make_local_copy(copy, quiet) == 0
    assert is_whole(copy)


def test_what_a_cleaner_has_taken_away_is_copied_again(copy):
    make_local_copy(copy, quiet)
    name, size = copy.files[200]
    (copy.folder / os.fsdecode(name)).unlink()
    assert make_local_copy(copy, quiet) == size
    assert is_whole(copy)


def test_a_copy_of_other_files_is_not_taken_for_whole(copy):
    make_local_copy(replace(copy, files=copy.files[:100]), quiet)
    assert make_local_copy(copy, quiet) == sum(size for _, size in copy.files[100:])
    assert is_whole(copy)


def killed_in_the_middle(copy: LocalCopy) -> None:
    copy_file, begun = local_copy._copy_file, []

    def killing(path, size, part, tally):
        begun.append(path)
        if len(begun) == NUM_FILES // 2:
            part.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        copy_file(path, size, part, tally)

    local_copy._copy_file = killing
    make_local_copy(copy, quiet)


def test_a_killed_copy_goes_on_where_it_was(copy):
    process = FORK.Process(target=killed_in_the_middle, args=(copy,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (copy.folder / SENTINEL).exists()
    kept = {path: path.stat().st_ino for path in copy.folder.rglob("*.jpg")}
    assert 0 < len(kept) < NUM_FILES
    assert all(path.read_bytes() == content(int(path.stem)) for path in kept), "no file is there by half"
    copied = make_local_copy(copy, quiet)
    assert copied == copy.num_bytes - sum(path.stat().st_size for path in kept)
    assert {path: path.stat().st_ino for path in kept} == kept
    assert is_whole(copy)


def make_and_report(copy: LocalCopy, both_ready, results) -> None:
    both_ready.wait()
    results.put(make_local_copy(copy, quiet))


@pytest.mark.distributed
def test_of_two_processes_one_copies(copy):
    both_ready, results = FORK.Barrier(2), FORK.Queue()
    processes = [FORK.Process(target=make_and_report, args=(copy, both_ready, results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert sorted(results.get(timeout=60) for _ in processes) == [0, copy.num_bytes]
    for process in processes:
        process.join()
    assert is_whole(copy)


def test_who_waits_for_another_copy_says_so_and_then_makes_sure_of_it(copy):
    copy.folder.mkdir()
    told = Queue()
    with (copy.folder / MARK).open("w") as held, ThreadPoolExecutor(1) as pool:
        fcntl.flock(held, fcntl.LOCK_EX)  # and its holder dies before it has copied anything
        waiting = pool.submit(make_local_copy, copy, told.put)
        assert told.get(timeout=60) is None
        assert [path.name for path in copy.folder.iterdir()] == [MARK]
        fcntl.flock(held, fcntl.LOCK_UN)
        assert waiting.result(timeout=60) == copy.num_bytes
    assert is_whole(copy)


@pytest.mark.wrong("tree")
def test_a_file_that_has_changed_is_named_and_nothing_counts_as_whole(copy):
    path = copy.source / os.fsdecode(copy.files[7][0])
    path.write_bytes(b"longer than it was when it was listed")
    message = rf"{path} has changed: it had 14 bytes when it was listed, and has 37 bytes now"
    with pytest.raises(DatasetError, match=message):
        make_local_copy(copy, quiet)
    assert not (copy.folder / SENTINEL).exists()
    path.write_bytes(content(7))
    make_local_copy(copy, quiet)
    assert is_whole(copy)


@pytest.mark.wrong("tree")
def test_files_that_are_gone_or_are_no_files_are_named(copy):
    path = copy.source / os.fsdecode(copy.files[7][0])
    path.unlink()
    with pytest.raises(DatasetError, match=rf"cannot be copied to {copy.folder}: {path}: No such file"):
        make_local_copy(copy, quiet)
    os.mkfifo(path)
    with pytest.raises(DatasetError, match="is no regular file now"):
        make_local_copy(copy, quiet)


@pytest.mark.wrong("disk")
def test_room_is_looked_at_before_anything_is_copied(copy, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 5000, 5000)
    monkeypatch.setattr(local_copy.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        DatasetError, match=r"has 5,000 bytes left, and [\d,]+ are needed for 300 files of .*/tree: make"
    ):
        make_local_copy(copy, quiet)
    assert [path.name for path in copy.folder.iterdir()] == [MARK]


@pytest.mark.wrong("disk")
def test_a_disk_that_fills_up_meanwhile_is_named_and_the_copy_goes_on_later(copy, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(local_copy.os, "fdatasync", full)
        with pytest.raises(DatasetError, match="No space left on device; make room there, or name another folder"):
            make_local_copy(copy, quiet)
    make_local_copy(copy, quiet)
    assert is_whole(copy)


@pytest.mark.wrong("folder")
def test_a_folder_of_somebody_elses_is_refused_and_left_as_it_is(copy):
    copy.folder.mkdir()
    mine = copy.folder / "thesis.tex"
    mine.write_text("all of it")
    with pytest.raises(DatasetError, match=rf"{copy.folder} holds files, and no mark"):
        make_local_copy(copy, quiet)
    assert [path.name for path in copy.folder.iterdir()] == ["thesis.tex"]
    assert mine.read_text() == "all of it"


@pytest.mark.wrong("folder")
@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_refused_and_left_as_it_is(copy, tmp_path, kind):
    if kind == "file":
        copy.folder.write_text("a file")
    else:
        copy.folder.symlink_to(tmp_path / "tree")
    with pytest.raises(DatasetError, match="is no folder; remove it, or name another"):
        make_local_copy(copy, quiet)
    assert (copy.folder.read_text() == "a file") if kind == "file" else copy.folder.is_symlink()


@pytest.mark.wrong("folder")
def test_a_place_that_is_not_there_is_not_made(copy):
    elsewhere = replace(copy, folder=copy.folder.parent.parent / "srcatch" / "tree-0")
    with pytest.raises(DatasetError, match="there is no folder .*/srcatch on this node"):
        make_local_copy(elsewhere, quiet)
    assert not elsewhere.folder.parent.exists()


@pytest.mark.wrong("tree")
@pytest.mark.parametrize("name", [b"../b.jpg", b"a/../../b.jpg", b"/etc/passwd"])
def test_names_that_lead_out_of_the_folder_are_refused(copy, name):
    (copy.source.parent / "b.jpg").write_bytes(b"b")
    with pytest.raises(DatasetError, match="is no name of a file in a tree"):
        make_local_copy(replace(copy, files=[(name, 1)]), quiet)
