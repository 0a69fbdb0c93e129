"""Images replaced by others as large are seen in the hashes of some files, whatever wraps the tree."""

from itertools import product

import pytest
from PIL import Image

from rlpheads.loaders.sources.canary_source import CanarySpec, insert_canaries
from rlpheads.loaders.sources.content_sample import MOST_SAMPLED, replaced_files, sample_contents
from rlpheads.loaders.sources.datasets import open_dataset
from rlpheads.loaders.sources.subset import take_subset


def write_tree(root, per_class):
    for split in ("train", "val"):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for number in range(per_class):
                (root / split / label / f"{number:03d}.png").write_bytes(f"{split}{label}{number:03d}".encode())


def replace_content(path):
    path.write_bytes(path.read_bytes()[::-1])


@pytest.mark.parametrize("wrapped", ["tree", "subset", "canaries"])
def test_a_file_with_other_contents_is_named_and_no_other(tmp_path, wrapped):
    write_tree(tmp_path, 20)
    source, _ = open_dataset("imagefolder", tmp_path, seed=0)
    if wrapped == "subset":
        source = take_subset(source, 0.8, None, seed=0)
    if wrapped == "canaries":
        source = insert_canaries(source, CanarySpec(mislabelled=4), seed=0)
    recorded = sample_contents(source)
    assert len(recorded) == source.manifest.num_samples
    assert replaced_files(source, recorded) == []
    names = [source.manifest.name(index) for index in (3, 11)]
    for name in names:
        replace_content(tmp_path / "train" / name)
    assert replaced_files(source, recorded) == names


@pytest.mark.parametrize("wrapped", ["tree", "subset"])
def test_a_turned_file_is_compared_too(tmp_path, wrapped):
    for split, label, number in product(("train", "val"), "ab", range(4)):
        picture, exif = Image.new("RGB", (8, 6), (9 * number, 99, 0)), Image.Exif()
        exif[0x0112] = 6 if number % 2 else 1
        (tmp_path / split / label).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / split / label / f"{number}.jpg", exif=exif)
    source, _ = open_dataset("imagefolder", tmp_path, seed=0, exif="apply")
    if wrapped == "subset":
        source = take_subset(source, 0.8, None, seed=0)
    recorded = sample_contents(source)
    assert len(recorded) == source.manifest.num_samples >= 7
    replace_content(tmp_path / "train" / "a" / "3.jpg")
    assert replaced_files(source, recorded) == ["a/3.jpg"]


def test_of_many_files_some_are_read_the_same_ones_each_time(tmp_path):
    write_tree(tmp_path, 200)
    source, _ = open_dataset("imagefolder", tmp_path, seed=0)
    recorded = sample_contents(source)
    assert len(recorded) == MOST_SAMPLED < source.manifest.num_samples
    assert sample_contents(source) == recorded
    for number in range(0, 200, 10):
        replace_content(tmp_path / "train" / "a" / f"{number:03d}.png")
    assert replaced_files(source, recorded), "one in twenty"


def test_a_file_that_cannot_be_read_is_not_compared(tmp_path):
    write_tree(tmp_path, 4)
    source, _ = open_dataset("imagefolder", tmp_path, seed=0)
    recorded = sample_contents(source)
    (tmp_path / "train" / "a" / "002.png").unlink()
    assert replaced_files(source, recorded) == []
    assert len(sample_contents(source)) == 7


def test_images_that_do_not_lie_in_a_tree_are_not_read():
    source, _ = open_dataset("digits", seed=0)
    assert sample_contents(source) == {}
    assert replaced_files(source, {"3": "0123456789abcdef"}) == []
