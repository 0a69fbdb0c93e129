"""Trees of any names and kinds of entries: a scan lists what it may, or refuses with one error; nothing is waited for."""

# Names are bytes here.
# ruff: noqa: PTH102, PTH103, PTH118, PTH123, PTH211

import os
import random
from pathlib import Path

import pytest
from image_corpus import CORPUS, JPEG
from mutations import run_cases

from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.content_sample import replaced_files, sample_contents
from rlpheads.loaders.sources.datasets import open_dataset
from rlpheads.loaders.sources.image_folder import IMAGE_SUFFIXES

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3600)]
CASES = 300
SECONDS = 20.0
CLASSES = [
    b"a",
    b"b",
    b"\xff\xfe",
    "é".encode(),
    "e\u0301".encode(),
    b"new\nline",
    b"[red]",
    b"-rf",
    b"@eaDir",
    b".hidden",
    b"train",
    b" ",
]
STEMS = [b"0", b"1", b"IMG", b"\x1b[31m", b"x" * 240, b"\xff", b"a b", b"..", b"'\"", b".jpg", b"%s", b"CON", b"-"]
SUFFIXES = [*(suffix.encode() for suffix in IMAGE_SUFFIXES), b".JPG", b".txt", b".heic", b"", b".jpg.gz"]
CONTENTS = [*(file.data for file in CORPUS if len(file.data) < 20_000), JPEG, JPEG, JPEG]


def write_entry(path: bytes, rng: random.Random, root: bytes) -> None:
    """Write a file mostly, or something that is none: a link, a pipe, a folder; or take away rights."""
    kind = rng.randrange(60)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        os.symlink(rng.choice([b"/dev/zero", b"/dev/null", b"nowhere", path, root, b".."]), path)
    elif kind == 2:
        os.mkdir(path)
    else:
        with open(path, "xb") as file:  # a pipe of that name would be waited for
            file.write(rng.choice(CONTENTS))


def write_tree(root: Path, rng: random.Random) -> None:
    splits = rng.choice(
        [[b"train", b"val"], [b"train", b"val"], [b"train", b"val"], [b"train"], [b"."], [b"train", b"test"]]
    )
    classes = rng.sample(CLASSES[:4] if rng.random() < 0.6 else CLASSES, rng.choice((2, 2, 3, 1)))
    for split in splits:
        for label in classes:
            folder = os.path.join(os.fsencode(root), split, label)
            os.makedirs(folder, exist_ok=True)
            for _ in range(rng.choice((2, 3, 5, 0) if rng.random() < 0.1 else (3, 4))):
                name = rng.choice(STEMS) + rng.choice(SUFFIXES if rng.random() < 0.4 else SUFFIXES[:4])
                try:
                    write_entry(os.path.join(folder, name), rng, os.fsencode(root))
                except (FileExistsError, IsADirectoryError):
                    continue


def test_no_tree_is_waited_for_or_ends_in_another_error(tmp_path):
    listed = tmp_path / "listed"

    def check(case: int) -> None:
        rng = random.Random(case)
        root = tmp_path / str(case)
        write_tree(root, rng)
        try:
            splits = open_dataset("imagefolder", root, val_fraction=rng.choice((None, 0.5)), seed=0)
        except DatasetError as error:
            assert str(error)
            return
        for source in splits:
            assert replaced_files(source, sample_contents(source)) == []
            order = Order(source.manifest.num_samples, 4, shuffle=False, partial="pad")
            loader = make_loader(
                "torch", source, order, CropSpec(8), train=False, options=LoaderOptions(on_error="skip")
            )
            batches = list(loader)
            seen = [int(index) for batch in batches for index in batch.index if index >= 0]
            skipped = [error.index for batch in batches for error in batch.skipped]
            assert sorted({*seen, *skipped}) == list(range(source.manifest.num_samples))
        with listed.open("a") as file:
            file.write("1")

    report = run_cases(check, range(CASES), seconds=SECONDS)
    assert not report.failures, f"{len(report.failures)} of {report.cases}: " + "\n".join(report.failures[:5])
    assert listed.stat().st_size > CASES / 10, "too few trees are sound"
