"""Stores: what is written is what was there, FFCV itself can read it, and a start that was broken off goes on."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from loader_libraries import require_library
from PIL import Image

from rlpheads.engine.cli import main
from rlpheads.loaders.contract.errors import DatasetError, ImageReadError
from rlpheads.loaders.sources import beton
from rlpheads.loaders.sources.beton import JPG, RAW, open_beton
from rlpheads.loaders.sources.datasets import ImageSource, open_dataset
from rlpheads.loaders.store.estimate import estimate
from rlpheads.loaders.store.image_encoding import Encoding
from rlpheads.loaders.store.write_ffcv import Job, write_beton


@pytest.fixture(scope="module", autouse=True)
def _ffcv():
    require_library("ffcv")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> ImageSource:
    """Six JPEG files of 90 × 120 pixels, and a PNG, in two classes; and the same number held out."""
    root = tmp_path_factory.mktemp("photographs")
    for split in ("train", "val"):
        for number in range(7):
            folder = root / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            rough = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
            picture = Image.fromarray(rough).resize((120, 90), Image.Resampling.BICUBIC)
            picture.save(folder / (f"{number}.png" if number == 6 else f"{number}.jpg"))
    return open_dataset("imagefolder", root, seed=0)[0]


def write(source: ImageSource, folder: Path, encoding: Encoding, **options) -> beton.BetonSource:
    job = Job(source, folder / "train.beton", "imagefolder", None, encoding, **options)
    write_beton(job)
    return open_beton(job.path)


def mean_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours.float() - theirs.float()).abs().mean().item()


@pytest.mark.long
def test_the_layout_is_ffcvs_own():
    from ffcv import types
    from ffcv.fields import IntField, RGBImageField

    assert types.HeaderType == beton.HEADER
    assert types.FieldDescType == beton.FIELD
    assert types.ALLOC_TABLE_TYPE == beton.ALLOCATION
    assert types.CURRENT_VERSION == beton.BETON_VERSION
    assert types.get_metadata_type([RGBImageField(), IntField(), IntField()]) == beton.SAMPLE
    handlers = types.get_handlers(beton.header(1, 1 << 21, 0, 64 * "f")[beton.HEADER.itemsize :].view(beton.FIELD))
    assert [type(handler) for handler in handlers] == [RGBImageField, IntField, IntField]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_raw_stores_hold_the_very_pixels(photographs, tmp_path, num_workers):
    store = write(photographs, tmp_path, Encoding("raw"), num_workers=num_workers)
    assert store.manifest == photographs.manifest
    assert all(torch.equal(store.read(index), photographs.read(index)) for index in range(7))


def test_jpeg_files_are_kept_byte_for_byte_unless_a_quality_is_asked_for(photographs, tmp_path):
    kept = write(photographs, tmp_path / "kept", Encoding("jpg"))
    for index in range(7):
        is_jpeg = photographs.manifest.name(index).endswith(".jpg")
        assert (kept.encoded(index) == photographs.encoded(index)) == is_jpeg
        assert mean_difference(kept.read(index), photographs.read(index)) < 2
    rough = write(photographs, tmp_path / "rough", Encoding("jpg", quality=20))
    assert rough.num_bytes.sum() < 0.7 * kept.num_bytes.sum()


def test_a_jpeg_that_ffcv_cannot_read_is_encoded_anew(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("CMYK", (40, 30), (0, 90, 200, 30)).save(tmp_path / "tree" / name / f"{number}.jpg")
    source, _ = open_dataset("imagefolder", tmp_path / "tree", val_fraction=0.5, seed=0)
    store = write(source, tmp_path, Encoding("jpg"))
    assert store.encoded(0) != source.encoded(0)
    assert mean_difference(store.read(0), source.read(0)) < 2


@pytest.mark.parametrize(
    ("encoding", "modes"),
    [
        (Encoding("raw"), {RAW}),
        (Encoding("jpg"), {JPG}),
        (Encoding("smart", smart_bytes=90 * 120 * 3), {RAW}),
        (Encoding("smart", smart_bytes=90 * 120 * 3 - 1), {JPG}),
        (Encoding("proportion", proportion=0.5), {RAW, JPG}),
        (Encoding("proportion", proportion=1.0), {JPG}),
    ],
    ids=str,
)
def test_modes(photographs, tmp_path, encoding, modes):
    store = write(photographs, tmp_path, encoding)
    assert set(store.samples["f0"]["mode"].tolist()) == modes
    assert all(mean_difference(store.read(index), photographs.read(index)) < 2 for index in range(7))


@pytest.mark.parametrize(
    ("encoding", "height", "width"),
    [
        (Encoding("raw", short_side=45), 45, 60),
        (Encoding("raw", long_side=60), 45, 60),
        (Encoding("jpg", short_side=30), 30, 40),
        (Encoding("raw", short_side=90), 90, 120),
        (Encoding("raw", long_side=500), 90, 120),
    ],
    ids=str,
)
def test_images_are_made_smaller_and_never_larger(photographs, tmp_path, encoding, height, width):
    image = write(photographs, tmp_path, encoding).read(3)
    assert image.shape == (3, height, width)
    shrunk = torch.nn.functional.interpolate(photographs.read(3)[None].float(), (height, width), mode="area")[0]
    assert mean_difference(image, shrunk) < 4


OWN_LOADER = """
import sys

import numpy as np
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader

store, out = sys.argv[1:]
((images, labels, index),) = Loader(store, 7, num_workers=1, pipelines={"image": [SimpleRGBImageDecoder()]})
np.savez(out, images=images, labels=labels, index=index)
"""


@pytest.mark.long
def test_ffcvs_own_loader_reads_a_store(photographs, tmp_path):
    store, out = write(photographs, tmp_path, Encoding("raw")), tmp_path / "batch.npz"
    # In a process of its own: FFCV changes torch's threads there, and a type of numba's for all that is compiled later.
    subprocess.run([sys.executable, "-c", OWN_LOADER, str(store.path), str(out)], check=True)
    batch = np.load(out)
    assert batch["index"][:, 0].tolist() == list(range(7))
    assert batch["labels"][:, 0].tolist() == photographs.manifest.targets.tolist()
    for row in range(7):
        np.testing.assert_array_equal(batch["images"][row], photographs.read(row).permute(1, 2, 0).numpy())


def wait_for(condition, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.01)


@pytest.mark.long
def test_a_killed_write_is_resumed(tmp_path):
    """The whole process group dies in the middle; the second start writes the rest, and all the same bytes."""
    arguments = ["convert", "--data.dataset", "digits", "--mode", "raw", "--workers", "1", "--out"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*arguments, str(whole)]) == 0
    journal = broken / "train.beton.rows"
    program = [sys.executable, "-m", "rlpheads.engine.cli", *arguments, str(broken)]
    process = subprocess.Popen(program, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: journal.exists() and journal.stat().st_size > 0)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < journal.stat().st_size // (beton.IMAGE.itemsize + 8) < 1437
    assert not (broken / "train.beton").exists()
    with (broken / "train.beton.partial").open("ab") as file:
        file.write(b"written, but not in the journal yet")
    assert main([*arguments, str(broken)]) == 0
    assert sorted(path.name for path in broken.iterdir()) == sorted(path.name for path in whole.iterdir())
    for name in ("train.beton", "val.beton"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_written_images_are_not_encoded_again(photographs, tmp_path):
    job = Job(photographs, tmp_path / "train.beton", "imagefolder", None, Encoding("raw"))
    with pytest.raises(KeyboardInterrupt):
        write_beton(job, interrupt)
    counts: list[int] = []
    write_beton(job, counts.append)
    assert counts == [7]


def interrupt(count: int) -> None:
    """Break the writing off when something is written."""
    if count:
        raise KeyboardInterrupt


@pytest.mark.wrong("file")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("job", b"[" * 200_000),
        ("job", b"[1]"),
        ("job", b"\xff"),
        ("job", b'{"fingerprint": "other"}'),
        ("unreadable", b"[" * 200_000 + b"\n"),
        ("unreadable", b'{"0": "reason"}\n'),
        ("unreadable", b'["0", null]\n'),
        ("unreadable", b"\xff\n"),
        ("rows", b"\0" * 4000),
    ],
)
def test_damaged_notes_of_an_unfinished_file_are_one_error_with_the_remedy(photographs, tmp_path, name, content):
    job = Job(photographs, tmp_path / "train.beton", "imagefolder", None, Encoding("raw"))
    with pytest.raises(KeyboardInterrupt):
        write_beton(job, interrupt)
    path = tmp_path / f"train.beton.{name}"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"train.beton.{name} is damaged \(.*rm .*partial") as caught:
        write_beton(job)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_other_settings_do_not_go_on_with_an_unfinished_file(photographs, tmp_path):
    job = Job(photographs, tmp_path / "train.beton", "imagefolder", None, Encoding("raw"))

    with pytest.raises(KeyboardInterrupt):
        write_beton(job, interrupt)
    with pytest.raises(
        DatasetError, match=r"begun with other settings: encoding is .*'jpg'.* was .*'raw'.*rm .*partial"
    ):
        write_beton(replace(job, encoding=Encoding("jpg")))


def test_a_finished_store_is_not_written_over(photographs, tmp_path):
    write(photographs, tmp_path, Encoding("raw"))
    with pytest.raises(DatasetError, match="is there already"):
        write(photographs, tmp_path, Encoding("raw"))


def test_an_unreadable_image_ends_the_writing_or_is_noted(tmp_path, write_tree):
    root = write_tree({f"{split}/{name}": ["1.png", "2.png"] for split in ("train", "val") for name in "ab"})
    (root / "train/a/2.png").write_bytes(b"nothing of the kind")
    source, _ = open_dataset("imagefolder", root, seed=0)
    with pytest.raises(ImageReadError, match="image 1 .*cannot be read"):
        write(source, tmp_path / "strict", Encoding("raw"))
    store = write(source, tmp_path / "noted", Encoding("raw"), on_error="skip")
    assert list(store.facts.unreadable) == [1]
    assert store.read(0).shape == source.read(0).shape
    with pytest.raises(
        ImageReadError, match=r"image 1 \(.*a/2.png\) cannot be read: .*Pillow does not know the format"
    ):
        store.read(1)


def test_an_image_larger_than_a_page_is_refused_with_the_page_that_holds_it(tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        Image.new("RGB", (1000, 800)).save(tmp_path / "tree" / name / "1.png")
    source, _ = open_dataset("imagefolder", tmp_path / "tree", seed=0)
    with pytest.raises(DatasetError, match=r"takes 2,400,000 bytes, .* --page-size 4194304"):
        write(source, tmp_path / "small", Encoding("raw"), page_size=2 << 20)
    assert write(source, tmp_path / "large", Encoding("raw"), page_size=4 << 20).read(0).shape == (3, 800, 1000)


def test_an_estimate_comes_close(photographs, tmp_path):
    few = estimate(photographs, Encoding("jpg"))
    store = write(photographs, tmp_path, Encoding("jpg"))
    assert few.bytes_per_image == pytest.approx(store.num_bytes.mean())
    assert few.seconds_per_image > 0
    assert few.file_bytes(len(store.num_bytes)) == pytest.approx(store.path.stat().st_size, rel=1e-3)


@pytest.mark.parametrize("page_size", [2 << 20, 8 << 20])
def test_an_estimate_counts_the_pages_that_images_do_not_fill(tmp_path, page_size):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (800, 500)).save(tmp_path / "tree" / name / f"{number}.png")
    source, _ = open_dataset("imagefolder", tmp_path / "tree", seed=0)
    store = write(source, tmp_path / "store", Encoding("raw"), page_size=page_size)
    expected = estimate(source, Encoding("raw")).file_bytes(6, page_size)
    assert expected == store.path.stat().st_size


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "png"}, "mode is 'png'; it must be one of raw, jpg, smart, proportion"),
        ({"long_side": 3, "short_side": 2}, "both given"),
        ({"long_side": 0}, "long_side is 0; it must be from 1"),
        ({"quality": 101}, "quality is 101; it must be from 1 to 100"),
        ({"proportion": 1.5}, r"proportion is 1.5; it must be in \[0, 1\]"),
    ],
)
def test_encodings_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Encoding(**values)
