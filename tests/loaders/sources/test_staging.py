"""Sources that read copies of the files on the node's own disk."""

from dataclasses import replace
from pathlib import Path

import pytest

from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.sources.image_folder import ImageFolderSource, scan_image_folder
from rlpheads.loaders.sources.staging import files_to_copy, staged


def test_an_unreadable_image_is_looked_for_where_it_lies(tmp_path: Path) -> None:
    """It is never copied: its error named a file of the copy, which does not exist."""
    root = tmp_path / "tree"
    for name in "ab":
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / "1.png").write_bytes(b"1")
    manifest = replace(scan_image_folder(root / "train", "train"), unreadable={1: "it is gone"})
    source = ImageFolderSource(manifest)
    assert [name for name, _ in files_to_copy((source, source), root)] == [b"train/a/1.png"] * 2
    copy = staged(source, root, tmp_path / "copy")
    assert copy.manifest.fingerprint == manifest.fingerprint
    with pytest.raises(ImageReadError) as caught:
        copy.read(1)
    assert caught.value.reason == f"it is gone (not copied from {root / 'train'})"
