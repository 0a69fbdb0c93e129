"""The list of a tree's files that a run keeps: what is gone is marked, and nothing moves."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.listing import as_listed, listing_path, read_listing, scanned_splits, write_listing
from rlpheads.loaders.sources.image_folder import open_image_folder, scan_splits


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for label in ("a", "b\udcff"):  # the second is no UTF-8
        (tmp_path / "tree" / label).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "tree" / label / f"{number}.png").write_bytes(bytes(number + 1))
    return tmp_path / "tree"


def test_a_listing_is_read_as_it_was_written(tree, tmp_path):
    (scanned,) = scan_splits(tree)
    write_listing(listing_path(tmp_path, "train"), scanned)
    read = read_listing(listing_path(tmp_path, "train"), tree)
    assert read == scanned
    assert (read.classes, read.root, read.names()) == (scanned.classes, tree, scanned.names())


def test_splits_of_one_scan_are_put_together_again(tree):
    splits = open_image_folder(tree, val_fraction=0.25, seed=0)
    assert list(scanned_splits(*splits)) == scan_splits(tree)
    apart = [replace(split, root=tree / split.split) for split in splits]
    assert list(scanned_splits(*apart)) == apart


def test_what_is_gone_or_changed_is_marked_and_what_is_new_is_left_out(tree, tmp_path):
    (scanned,) = scan_splits(tree)
    write_listing(listing_path(tmp_path, "train"), scanned)
    assert as_listed(scanned, tmp_path) is scanned
    assert as_listed(scanned, None) is scanned
    (tree / "a" / "1.png").unlink()
    (tree / "a" / "2.png").write_bytes(b"")
    (tree / "a" / "0a.png").write_bytes(b"new")
    shutil.copy(tree / "a" / "3.png", tree / "a" / "9.png")
    (now,) = scan_splits(tree)
    listed = as_listed(now, tmp_path)
    assert listed == scanned
    assert dict(listed.unreadable) == {
        1: "it is gone since the run began",
        2: "it has 0 bytes and had 3 when the run began",
    }
    assert (
        "2 of 8 images are gone or changed since the run began and are left out; 2 that were added"
        in listed.remarks[-1]
    )
    train, heldout = open_image_folder(tree, val_fraction=0.25, seed=0, listing=tmp_path)
    assert train.num_samples + heldout.num_samples == 8
    assert len(train.unreadable) + len(heldout.unreadable) == 2


@pytest.mark.wrong("file")
def test_a_damaged_listing_is_named(tree, tmp_path):
    (scanned,) = scan_splits(tree)
    path = listing_path(tmp_path, "train")
    write_listing(path, scanned)
    path.write_bytes(path.read_bytes()[:-99])
    with pytest.raises(DatasetError, match=r"train\.npz, the list of the run's images, is damaged"):
        as_listed(scanned, tmp_path)
