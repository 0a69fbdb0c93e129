"""Listings of large trees are taken up again while they are true, and made anew when they are not."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from listed_folders import ListedFolders

from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.sources.datasets import open_dataset
from rlpheads.loaders.sources.image_folder import scan_image_folder
from rlpheads.loaders.sources.scan_cache import ScanCache


@pytest.fixture
def root(tmp_path) -> Path:
    """A tree of train and val, 600 files, which has not changed for a minute."""
    for split, count in (("train", 250), ("val", 50)):
        for name in ("a", "b"):
            folder = tmp_path / "tree" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number:03}.jpg").write_bytes(b"%s %s %03d" % (split.encode(), name.encode(), number))
    return tmp_path / "tree"


@pytest.fixture
def cache(tmp_path) -> ScanCache:
    """A cache for which any tree is large and old enough."""
    return ScanCache(tmp_path / "cache", least_files=100, settled_ns=-(10**12))


def opened(root, cache):
    return open_dataset("imagefolder", root, seed=0, cache=cache)


def test_second_start_lists_no_class_folder(root, cache, monkeypatch):
    listed = ListedFolders(monkeypatch)
    first = opened(root, cache)
    assert listed.count() == 4
    second = opened(root, cache)
    assert listed.count() == 0
    assert [source.manifest for source in second] == [source.manifest for source in first]
    assert second[0].encoded(7) == first[0].encoded(7)
    opened(root, replace(cache, rescan=True))
    assert listed.count() == 4, "data.rescan"


@pytest.mark.parametrize("change", ["add", "remove", "rename", "replace by another", "a folder of files", "a class"])
def test_changed_folder_is_scanned(root, cache, change):
    before = opened(root, cache)[0].manifest
    file = root / "train" / "a" / "100.jpg"
    match change:
        case "add":
            file.with_name("new.jpg").write_bytes(b"new")
        case "remove":
            file.unlink()
        case "rename":
            file.rename(file.with_name("renamed.jpg"))
        case "replace by another":
            (root / "other").write_bytes(b"another size")
            (root / "other").rename(file)
        case "a folder of files":
            (file.parent / "more").mkdir()
            (file.parent / "more" / "1.jpg").write_bytes(b"1")
        case "a class":
            for split in ("train", "val"):
                (root / split / "c").mkdir()
                (root / split / "c" / "1.jpg").write_bytes(b"1")
    after = opened(root, cache)[0].manifest
    assert after == opened(root, None)[0].manifest != before


def test_files_written_over_in_place_are_seen_by_the_sample_or_named_by_the_loader(root, cache):
    before = opened(root, cache)[0].manifest
    (root / "train" / "a" / "000.jpg").write_bytes(b"longer than it was before")
    (place,) = (index for index in range(before.num_samples) if before.name(index) == "a/000.jpg")
    source = opened(root, cache)[0]
    if source.manifest == before:  # no part of the sample
        with pytest.raises(
            ImageReadError, match=r"it has 25 bytes, but 11 when the folder was scanned \(--data.rescan"
        ):
            source.read(place)
    for file in (root / "train").rglob("*.jpg"):
        file.write_bytes(b"x" * file.stat().st_size)
    before = opened(root, replace(cache, rescan=True))[0].manifest
    for file in (root / "train").rglob("*.jpg"):
        file.write_bytes(b"every one has a new size now")
    assert opened(root, cache)[0].manifest == opened(root, None)[0].manifest != before


@pytest.mark.parametrize("harm", [b"", b"{}", b"[]", b"\x80", b'{"version": 1}'])
@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_damaged_cache_is_no_cache(root, cache, suffix, harm):
    before = opened(root, cache)[0].manifest
    for file in cache.folder.glob(f"*.{suffix}"):
        file.write_bytes(harm)
    assert opened(root, cache)[0].manifest == before


def test_trees_that_are_small_or_changing_are_not_kept(root, cache):
    opened(root, replace(cache, least_files=501))
    opened(root, replace(cache, settled_ns=ScanCache.settled_ns))  # a change within the clock's step would not be seen
    assert not list(cache.folder.glob("*.json"))
    opened(root, replace(cache, least_files=500))
    (kept,) = cache.folder.glob("*.json")
    assert json.loads(kept.read_text())["folders"].keys() == {"", "a", "b"}
    assert kept.with_suffix(".npz").exists()


def test_of_several_processes_one_scans(root, cache):
    """Threads stand for them: each takes the lock through an open file of its own."""
    scans = []

    def scan(folder, split):
        scans.append(split)
        time.sleep(0.2)
        return scan_image_folder(folder, split)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: cache.listed(root / "train", "train", scan), range(3)))
    assert scans == ["train"]
    assert len({manifest.fingerprint for manifest in found}) == 1


def test_no_tree_waits_for_the_scan_of_another(root, cache, tmp_path):
    """A small tree waited for the scan of a large one on a slow disk, without a word."""
    other, scanning, go_on = tmp_path / "other", threading.Event(), threading.Event()
    for name in "ab":
        (other / name).mkdir(parents=True)
        (other / name / "1.png").write_bytes(b"1")

    def slowly(folder, split):
        scanning.set()
        assert go_on.wait(30)
        return scan_image_folder(folder, split)

    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(cache.listed, root / "train", "train", slowly)
        try:
            assert scanning.wait(30)
            found = pool.submit(cache.listed, other, "train", scan_image_folder).result(timeout=20)
        finally:
            go_on.set()
        assert found.num_samples == 2
        assert slow.result().num_samples > 2
    assert not list(cache.folder.glob("*.lock"))  # a file for each folder that was ever scanned
