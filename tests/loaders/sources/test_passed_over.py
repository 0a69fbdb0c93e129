"""What a scan passes over is never opened, and is counted by kind in one line."""

import os

import pytest

from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.sources.datasets import open_dataset
from rlpheads.loaders.sources.image_folder import ImageFolderSource, scan_image_folder

PAIR = ["a.jpg", "b.png"]


@pytest.mark.timeout(30)
@pytest.mark.wrong("tree")
def test_a_pipe_and_a_device_with_an_images_suffix_are_passed_over_and_said(write_tree):
    root = write_tree({"cat": PAIR, "dog": PAIR})
    before = scan_image_folder(root, "train")
    os.mkfifo(root / "cat" / "pipe.jpg")
    (root / "dog" / "zero.png").symlink_to("/dev/zero")
    manifest = scan_image_folder(root, "train")
    assert manifest.fingerprint == before.fingerprint
    assert before.remarks == ()
    (line,) = manifest.remarks
    assert line.startswith(f"{root}: 2 passed over: 2 pipe(s), socket(s) or device(s) (no file: cat/pipe.jpg)")


@pytest.mark.timeout(30)
@pytest.mark.wrong("tree")
def test_a_file_that_became_a_pipe_or_a_device_since_the_scan_is_an_error_at_once(write_tree):
    root = write_tree({"cat": PAIR, "dog": PAIR})
    source = ImageFolderSource(scan_image_folder(root, "train"))
    for index, name in enumerate(("cat/a.jpg", "cat/b.png")):
        (root / name).unlink()
        os.mkfifo(root / name) if index == 0 else (root / name).symlink_to("/dev/zero")
        with pytest.raises(ImageReadError, match=f"{name}.*cannot be read: it is not a regular file"):
            source.read(index)


@pytest.mark.wrong("tree")
def test_files_of_other_suffixes_and_hidden_ones_are_counted_by_kind(write_tree):
    root = write_tree({"cat": PAIR, "dog": PAIR})
    before = scan_image_folder(root, "train")
    for name in ("1.heic", "2.HEIC", "notes.txt", ".DS_Store", "no_suffix", "odd.\x1b[31m"):
        (root / "cat" / name).write_bytes(b"no image")
    (root / "dog" / ".thumbs").mkdir()
    (root / "dog" / ".thumbs" / "small.jpg").write_bytes(b"no image")
    manifest = scan_image_folder(root, "train")
    assert manifest == before
    (line,) = manifest.remarks
    assert line.startswith(f"{root}: 7 passed over: 2 ")
    for kind in ("2 .heic", "1 .txt", "1 hidden file(s)", "1 hidden folder(s)", "2 of other names"):
        assert kind in line
    assert line.isprintable()


@pytest.mark.wrong("tree")
def test_thumbnails_of_network_storage_stay_samples_and_are_said(write_tree):
    root = write_tree({"cat": PAIR, "cat/@eaDir/a.jpg": ["SYNOPHOTO_THUMB_M.jpg"], "dog": PAIR})
    manifest = scan_image_folder(root, "train")
    assert manifest.num_samples == 5
    assert len(manifest.remarks) == 1
    assert "1 samples lie in folders named @eaDir" in manifest.remarks[0]


def test_remarks_reach_both_splits(write_tree):
    root = write_tree({"cat": PAIR, "dog": PAIR})
    (root / "cat" / "1.heic").write_bytes(b"no image")
    train, val = open_dataset("imagefolder", root, val_fraction=0.5, seed=0)
    assert train.manifest.remarks == val.manifest.remarks
    assert "1 .heic" in train.manifest.remarks[0]
