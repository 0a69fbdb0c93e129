"""A tree of images is listed in one fixed order, and every wrong tree gets one clear message."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from rlpheads.loaders.contract.errors import DatasetError, ImageReadError
from rlpheads.loaders.sources.datasets import count_classes, open_dataset
from rlpheads.loaders.sources.image_folder import ImageFolderSource, scan_image_folder

PAIR = ["a.jpg", "b.png"]
SPLIT_TREE = {f"{split}/{label}": PAIR for split in ("train", "val") for label in ("cat", "dog")}


def test_a_tree_is_listed_as_torchvision_does(write_tree):
    root = write_tree(
        {"dog": ["z.JPEG", "B.jpg", "a.png"], "cat/inner": ["x.webp"], "cat": ["é.jpg", "y.bmp"], "Ant": PAIR}
    )
    manifest = scan_image_folder(root, "train")
    theirs = ImageFolder(root)
    assert list(manifest.classes) == theirs.classes == ["Ant", "cat", "dog"]
    ours = [(str(manifest.path(i)), int(manifest.targets[i])) for i in range(manifest.num_samples)]
    assert sorted(ours) == sorted(theirs.samples)
    assert manifest.names() == sorted(manifest.names())
    assert [int(size) for size in manifest.sizes] == [Path(path).stat().st_size for path, _ in ours]


@pytest.mark.parametrize(
    ("suffix", "kind"),
    {
        **dict.fromkeys([".jpg", ".JPEG", ".jpe", ".jfif"], "JPEG"),
        **dict.fromkeys([".jp2", ".j2k", ".jpx"], "JPEG2000"),
        **dict.fromkeys([".png", ".apng"], "PNG"),
        **dict.fromkeys([".bmp", ".dib"], "BMP"),
        **dict.fromkeys([".pbm", ".pgm", ".pnm", ".ppm"], "PPM"),
        **dict.fromkeys([".tif", ".tiff"], "TIFF"),
        ".avif": "AVIF",
        ".gif": "GIF",
        ".webp": "WEBP",
    }.items(),
)
def test_every_suffix_of_a_format_that_is_read_is_a_sample(write_tree, suffix, kind):
    root = write_tree({"cat": PAIR, "dog": []})
    mode = {".pbm": "1", ".pgm": "L"}.get(suffix, "RGB")
    Image.new(mode, (30, 20), 1 if mode == "1" else 200 if mode == "L" else (200, 200, 200)).save(
        root / "dog" / f"x{suffix}", kind
    )
    source = ImageFolderSource(scan_image_folder(root, "train"))
    assert source.manifest.remarks == ()
    assert source.read(2).shape == (3, 20, 30)
    assert 197 <= float(source.read(2).float().mean()) <= (255 if mode == "1" else 203)


def test_the_fingerprint_of_a_tree_of_plain_images_is_what_it_always_was(write_tree):
    root = write_tree({"cat": [], "dog": []})
    for name in ("cat/a.jpg", "cat/b.PNG", "dog/c.webp"):
        (root / name).write_bytes(name.encode())
    expected = "3b1867e6675a40b52e47e2884940c5c306cf376d5148cd02cabcd19140fefd6e"
    assert scan_image_folder(root, "train").fingerprint == expected


def test_hidden_files_and_other_files_are_no_samples(write_tree):
    root = write_tree({"cat": PAIR, "dog": PAIR})
    before = scan_image_folder(root, "train")
    for name in ("cat/.hidden.jpg", "cat/._a.jpg", "cat/notes.txt", "README.md", ".git"):
        (root / name).write_text("no image")
    (root / "dog" / ".cache").mkdir()
    (root / "dog" / ".cache" / "c.jpg").write_text("no image")
    assert scan_image_folder(root, "train") == before


def test_the_fingerprint_depends_on_the_files_and_not_on_the_root(write_tree, tmp_path):
    root = write_tree({"cat": PAIR, "dog": PAIR})
    (tmp_path / "copy").mkdir()
    for name in ("dog/b.png", "cat/b.png", "dog/a.jpg", "cat/a.jpg"):  # another order of creation
        (tmp_path / "copy" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "copy" / name).write_bytes((root / name).read_bytes())
    before = scan_image_folder(root, "train")
    assert scan_image_folder(tmp_path / "copy", "train") == before
    changes = [
        lambda: (root / "cat" / "c.jpg").write_bytes(b"1"),
        lambda: (root / "cat" / "c.jpg").write_bytes(b"12"),
        lambda: (root / "cat" / "c.jpg").rename(root / "cat" / "d.jpg"),
        lambda: (root / "cat" / "d.jpg").rename(root / "dog" / "d.jpg"),
    ]
    seen = {before.fingerprint}
    for number, change in enumerate(changes, start=2):
        change()
        seen.add(scan_image_folder(root, "train").fingerprint)
        assert len(seen) == number
    (root / "dog" / "d.jpg").unlink()
    assert scan_image_folder(root, "train") == before


def test_linked_folders_and_files_are_followed(write_tree, tmp_path):
    root = write_tree({"cat": PAIR, "dog": PAIR})
    linked = tmp_path / "linked"
    (linked / "dog").mkdir(parents=True)
    (linked / "cat").symlink_to(root / "cat")
    for name in PAIR:
        (linked / "dog" / name).symlink_to(root / "dog" / name)
    manifest = scan_image_folder(linked, "train")
    assert manifest == scan_image_folder(root, "train")
    assert ImageFolderSource(manifest).read(3).shape[0] == 3


def test_names_that_are_not_unicode_are_read(write_tree):
    root = write_tree({"cat": PAIR, "dog": PAIR})
    (root / "dog" / "a.jpg").rename(root / "dog" / os.fsdecode(b"\xff.jpg"))
    manifest = scan_image_folder(root, "train")
    assert manifest.names()[-1] == b"dog/\xff.jpg"
    assert ImageFolderSource(manifest).read(3).dtype == torch.uint8


def test_a_tree_with_splits_is_opened_as_it_is(write_tree):
    train, val = open_dataset("imagefolder", write_tree(SPLIT_TREE), seed=0)
    assert (train.manifest.split, val.manifest.split) == ("train", "val")
    assert train.manifest.names() == val.manifest.names() == [b"cat/a.jpg", b"cat/b.png", b"dog/a.jpg", b"dog/b.png"]
    assert train.manifest.fingerprint != val.manifest.fingerprint


@pytest.mark.parametrize("tree", [SPLIT_TREE, {"train/cat": PAIR, "train/dog": PAIR}, {"cat": PAIR, "dog": PAIR}])
def test_classes_are_counted_without_listing_the_images(write_tree, tree):
    root = write_tree(tree)
    for image in root.rglob("*.*"):
        image.unlink()
    assert count_classes("imagefolder", root) == 2


def test_classes_of_a_tree_that_is_not_there_are_not_counted(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        count_classes("imagefolder", tmp_path / "none")
    with pytest.raises(DatasetError, match="must hold one folder for each class"):
        count_classes("imagefolder", tmp_path)


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_a_tree_without_splits_is_split(write_tree, prefix):
    names = [f"{number}.png" for number in range(10)]
    root = write_tree({f"{prefix}cat": names, f"{prefix}dog": names})
    train, val = open_dataset("imagefolder", str(root), val_fraction=0.3, seed=4)
    assert np.bincount(val.manifest.targets).tolist() == [3, 3]
    assert np.bincount(train.manifest.targets).tolist() == [7, 7]
    assert val.read(0).shape[0] == 3


WRONG_TREES = {
    "a link into itself": ({"cat": PAIR, "dog": PAIR}, {}, "dog/loop.* is a link to a folder that it lies in"),
    "a link to itself": ({"cat": PAIR, "dog": PAIR}, {}, "dog/self cannot be read: Too many levels"),
    "a broken link": ({"cat": PAIR, "dog": PAIR}, {}, "dog/gone.jpg cannot be read: No such file"),
    "images without classes": ({".": PAIR}, {}, "2 images directly in it; each class needs a folder of its own"),
    "nothing": ({".": []}, {}, "must hold one folder for each class: it has none"),
    "no images": ({"cat": [], "dog": []}, {"val_fraction": 0.5}, r"holds no images: its class folders \(cat, dog\)"),
    "empty classes": (
        {"cat": PAIR, "dog": [], "emu": []},
        {"val_fraction": 0.5},
        r"class folder\(s\) without images .*: dog, emu",
    ),
    "one class": ({"imagenet": PAIR}, {"val_fraction": 0.5}, "one class folder only, 'imagenet'"),
    "no split": ({"cat": PAIR, "dog": PAIR}, {}, "no train and val folders; .* its 2 class folders, set val_fraction"),
    "train alone": ({"train/cat": PAIR, "train/dog": PAIR}, {}, "a train folder but no val folder: set val_fraction"),
    "validation is not val": ({"train/cat": PAIR, "validation/cat": PAIR}, {}, "or rename validation to val"),
    "val alone": ({"val/cat": PAIR, "val/dog": PAIR}, {}, "a val folder but no train folder"),
    "train beside classes": (
        {"train": PAIR, "bus": PAIR},
        {"val_fraction": 0.5},
        r"a train folder beside others \(bus\): point root at .*/train",
    ),
    "classes that look alike": (
        {"train/caf\u00e9": PAIR, "train/dog": PAIR, "val/cafe\u0301": PAIR, "val/dog": PAIR},
        {},
        r"only in train: caf\\xe9; only in val: cafe\\u0301; some differ only in how .*NFC or NFD: rename one of the",
    ),
    "different classes": (
        SPLIT_TREE | {"train/emu": PAIR, "val/fox": PAIR},
        {},
        "differ in their classes; only in train: emu; only in val: fox",
    ),
    "split twice": (SPLIT_TREE, {"val_fraction": 0.1}, "has a val folder already: set val_fraction to null"),
    "fraction": ({"cat": PAIR, "dog": PAIR}, {"val_fraction": 1.0}, r"val_fraction is 1.0; .* in \(0, 1\)"),
    "lone image": ({"cat": PAIR, "dog": ["a.jpg"]}, {"val_fraction": 0.5}, r"class 'dog' has 1 image\(s\)"),
    "empty class in val": (SPLIT_TREE | {"val/dog": []}, {}, r"without images in .*/val: dog"),
}
LINKS = {"a link into itself": ("dog/loop", ".."), "a link to itself": ("dog/self", "self")}
LINKS["a broken link"] = ("dog/gone.jpg", "nowhere.jpg")


@pytest.mark.wrong("tree")
@pytest.mark.parametrize("case", WRONG_TREES)
def test_a_wrong_tree_is_refused_in_one_line(write_tree, case):
    tree, arguments, message = WRONG_TREES[case]
    root = write_tree(tree)
    if case in LINKS:
        name, target = LINKS[case]
        (root / name).symlink_to(target)
        arguments = {"val_fraction": 0.5}
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset("imagefolder", root, seed=0, **arguments)
    assert "\n" not in str(caught.value)
    assert "data" in str(caught.value) or case in (
        "fraction",
        "lone image",
        "different classes",
        "classes that look alike",
    )


@pytest.mark.wrong("tree")
@pytest.mark.parametrize(
    ("name", "root", "message"),
    [
        ("imagefolder", None, "imagefolder needs root"),
        ("imagefolder", "dta", r"dta does not exist \(did you mean .*/data\?\)"),
        ("imagefolder", "no/where", r"does not exist \(nor does .*/no\)"),
        ("imagefolder", "data/cat/a.jpg", "is a file, not the folder"),
        (
            "imagefoldr",
            "data",
            "no dataset 'imagefoldr': it must be one of digits, .*imagefolder.*; did you mean 'imagefolder'",
        ),
        ("mnist", None, "it must be one of digits, .*imagefolder"),
    ],
)
def test_an_unknown_dataset_is_refused_with_the_nearest_name(write_tree, name, root, message):
    parent = write_tree({"cat": PAIR, "dog": PAIR}).parent
    with pytest.raises(DatasetError, match=message):
        open_dataset(name, root and parent / root, seed=0)


@pytest.mark.wrong("file")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"not an image" * 9, "does not know the format"),
        (None, "No such file or directory"),
        ("half", "incomplete or truncated"),
        ("grown", "bytes, but .* when the folder was scanned"),
    ],
)
def test_an_unreadable_image_is_named_by_index_and_path(write_tree, content, reason):
    root = write_tree({"cat": ["a.jpg"], "dog": ["a.jpg"]})
    path = root / "dog" / "a.jpg"
    whole = path.read_bytes()
    if isinstance(content, bytes):
        path.write_bytes(content)
    if content == "half":
        path.write_bytes(whole[: len(whole) // 2])
    source = ImageFolderSource(scan_image_folder(root, "train"))
    if content is None:
        path.unlink()
    if content == "grown":
        path.write_bytes(whole + b"\0")
    assert source.read(0).shape[0] == 3
    with pytest.raises(ImageReadError, match=reason) as caught:
        source.read(1)
    assert (caught.value.index, caught.value.path) == (1, str(path))
    assert f"image 1 ({path})" in str(caught.value)
