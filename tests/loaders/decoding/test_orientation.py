"""EXIF orientation: the pixels of Pillow's own transpose, the same in every loader, and in the fingerprint."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.decoding.decode import decode_rgb
from rlpheads.loaders.decoding.orientation import exif_orientation, turn_upright
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.beton import open_beton, open_store
from rlpheads.loaders.sources.datasets import open_dataset
from rlpheads.loaders.store.image_encoding import Encoding
from rlpheads.loaders.store.write_ffcv import Job, write_beton

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)).resize((56, 40))


def file_with(orientation: int | None, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    PICTURE.save(file, kind, exif=exif.tobytes() if orientation is not None else b"")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pixels_are_pillows(kind, orientation):
    data = file_with(orientation, kind)
    assert exif_orientation(data) == (1 if kind == "TIFF" else orientation)  # Pillow itself turns it, always
    turned = turn_upright(decode_rgb(data), exif_orientation(data))
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.abs(turned.permute(1, 2, 0).numpy().astype(int) - expected).max() <= (1 if kind == "WEBP" else 0)


@pytest.mark.parametrize("data", [b"", file_with(None), file_with(9), file_with(0), file_with(6)[:60], b"Exif\0\0"])
def test_what_names_no_orientation_is_upright(data):
    assert exif_orientation(data) == 1


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree whose pictures have every orientation, and none."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "tree" / split / name
            folder.mkdir(parents=True)
            for orientation in range(1, 9):
                (folder / f"{orientation}.jpg").write_bytes(file_with(orientation))
            (folder / "none.png").write_bytes(file_with(None, "PNG"))
    return tmp_path / "tree"


def test_the_policy_is_in_the_fingerprint_and_ignoring_is_what_it_was(tree):
    ignoring, _ = open_dataset("imagefolder", tree, seed=0)
    applying, _ = open_dataset("imagefolder", tree, seed=0, exif="apply")
    assert ignoring.manifest.fingerprint != applying.manifest.fingerprint
    assert ignoring.read(5).shape == (3, 40, 56)
    assert applying.read(5).shape == (3, 56, 40)
    kept = applying.manifest.select(np.arange(18) > 3, "train")
    assert kept.exif == "apply"


def test_images_without_files_have_none():
    with pytest.raises(DatasetError, match="the images of digits have no EXIF orientation: leave data.exif at ignore"):
        open_dataset("digits", seed=0, exif="apply")


def batches(kind: str, source, train: bool) -> list[torch.Tensor]:
    order = Order(source.manifest.num_samples, 6, seed=0, shuffle=train, partial="drop" if train else "pad")
    loader = make_loader(kind, source, order, CropSpec(24), train=train, options=LoaderOptions())
    return [batch.images.clone() for batch in loader]


def stored(tree: Path, out: Path, exif: str) -> Path:
    for source in open_dataset("imagefolder", tree, seed=0, exif=exif):
        encoding = Encoding(mode="raw")
        write_beton(Job(source, out / f"{source.manifest.split}.beton", "imagefolder", None, encoding))
    return out


@pytest.mark.parametrize("exif", ["ignore", "apply"])
@pytest.mark.parametrize("train", [True, False])
def test_a_store_has_the_pixels_and_the_fingerprint_of_its_tree(tree, tmp_path, exif, train):
    pytest.importorskip("ffcv")
    (tmp_path / "store").mkdir()
    source, _ = open_dataset("imagefolder", stored(tree, tmp_path / "store", exif), seed=0, exif=exif)
    expected, _ = open_dataset("imagefolder", tree, seed=0, exif=exif)
    assert source.manifest.fingerprint == expected.manifest.fingerprint
    for ours, theirs in zip(batches("torch", source, train), batches("torch", expected, train), strict=True):
        assert torch.equal(ours, theirs)


def test_a_store_made_otherwise_is_refused(tree, tmp_path):
    pytest.importorskip("ffcv")
    (tmp_path / "store").mkdir()
    stored(tree, tmp_path / "store", "ignore")
    assert open_beton(tmp_path / "store" / "train.beton").facts.exif == "ignore"
    with pytest.raises(DatasetError, match="made with --data.exif ignore, but the run has data.exif apply"):
        open_store(tmp_path / "store", "imagefolder", None, "apply")


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_dali_turns_what_torch_turns(tree, exif, train):
    pytest.importorskip("nvidia.dali")
    source, _ = open_dataset("imagefolder", tree, seed=0, exif=exif)
    for ours, theirs in zip(batches("dali", source, train), batches("torch", source, train), strict=True):
        assert (
            float((ours.float() - theirs.float()).abs().mean()) < 3
        )  # resampled otherwise; turned wrongly it is far more
