"""DALI and the files of the corpus: every outcome as stated, as torch's where it says why, and no batch is lost."""

from pathlib import Path

import pytest
import torch
from loader_libraries import require_library
from PIL import Image

require_library("dali")  # before what imports it

from image_corpus import CORPUS, HEIGHT, JPEG, WIDTH, CorpusFile, Outcome, write_corpus
from loader_kinds import loader_of

from rlpheads.loaders.adapters.dali_pipeline import DaliPipeline, DecodeError
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import DatasetError, ImageReadError, LoaderError
from rlpheads.loaders.sources.datasets import ImageSource, open_dataset
from rlpheads.loaders.sources.verification import FOLDER_NAME, BadFile, Verification, verification_path

CROP = CropSpec(32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[ImageSource, dict[int, CorpusFile]]:
    root = tmp_path_factory.mktemp("corpus")
    files = write_corpus(root)
    return open_dataset("imagefolder", root, seed=0)[0], files


def read(kind: str, source: ImageSource, **options) -> tuple[dict[int, torch.Tensor], dict[int, ImageReadError]]:
    """All images and all errors of a pass, by index."""
    rows: dict[int, torch.Tensor] = {}
    errors: dict[int, ImageReadError] = {}
    for batch in loader_of(kind, source, CROP, 8, on_error="skip", **options):
        assert not batch.images[batch.index < 0].any()
        assert not batch.targets[batch.index < 0].any()
        rows |= {int(index): image for index, image in zip(batch.index, batch.images, strict=True) if index >= 0}
        errors |= {error.index: error for error in batch.skipped}
    return rows, errors


@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
@pytest.mark.parametrize("train", [True, False])
def test_every_file_of_the_corpus_comes_out_as_stated_and_as_in_torch(corpus, train):
    source, files = corpus
    rows, errors = read("dali", source, train=train, num_workers=2)
    torch_rows, torch_errors = read("torch", source, train=train)
    assert rows.keys() | errors.keys() == set(range(source.manifest.num_samples))
    assert not rows.keys() & errors.keys()
    outcomes = {Outcome.READ: rows.keys(), Outcome.REFUSED: errors.keys()}
    assert not [file.name for index, file in files.items() if index not in outcomes.get(file.outcome, files)]
    undamaged = [index for index in rows if index not in files or files[index].outcome is Outcome.READ]
    far = {
        files[index].name if index in files else index: difference
        for index in undamaged
        if (difference := (rows[index].float() - torch_rows[index].float()).abs().mean().item()) > 0.5
    }
    assert not far
    for index in errors.keys() & torch_errors.keys():
        assert str(errors[index]) == str(torch_errors[index])


@pytest.mark.parametrize(
    "file", [each for each in CORPUS if each.outcome is Outcome.REFUSED], ids=lambda file: file.name
)
def test_each_refused_file_ends_a_strict_epoch_by_name(tmp_path, file):
    write_corpus(tmp_path, (file,))
    source, _ = open_dataset("imagefolder", tmp_path, seed=0)
    loader = loader_of("dali", source, CROP, 1, train=False)
    batches = iter(loader)
    assert [next(batches).index.item() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ImageReadError) as caught:
        next(batches)
    assert (caught.value.index, caught.value.path) == (3, str(tmp_path / "train" / "odd" / file.name))
    assert loader.state_dict() == {"epoch": 0, "consumed": 3}


@pytest.fixture
def thirty(tmp_path) -> ImageSource:
    write_corpus(tmp_path, tuple(CorpusFile(f"{number:02d}.jpg", JPEG, Outcome.READ) for number in range(30)))
    return open_dataset("imagefolder", tmp_path, seed=0)[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_vanishes_in_the_middle_of_an_epoch_is_named(thirty, num_workers):
    loader = loader_of("dali", thirty, CROP, 2, train=False, num_workers=num_workers, prefetch=1)
    batches = iter(loader)
    next(batches)
    last = thirty.manifest.path(32)
    last.unlink()
    with pytest.raises(ImageReadError, match=r"image 32 .*No such file") as caught:
        list(batches)
    assert caught.value.path == str(last)
    assert loader.state_dict()["consumed"] == 32
    with pytest.raises(ImageReadError, match="image 32 "):
        list(loader)


def without_tables(data: bytes) -> bytes:
    """A whole JPEG in form, whose Huffman tables make no sense: only decoding tells."""
    start = data.index(b"\xff\xc4") + 5
    return data[:start] + b"\xff" * 16 + data[start + 16 :]


def overwrite(path: Path, data: bytes) -> None:
    path.write_bytes(data[: path.stat().st_size].ljust(path.stat().st_size, b"\0"))


def test_unreadable_images_of_a_batch_that_dali_cannot_decode_are_named_or_skipped(thirty):
    overwrite(thirty.manifest.path(9), without_tables(JPEG))
    rows, errors = read("dali", thirty, train=False)
    assert list(errors) == [9]
    assert errors[9].path == str(thirty.manifest.path(9))
    assert rows.keys() == set(range(33)) - {9}
    torch_rows, _ = read("torch", thirty, train=False)
    assert all((rows[index].float() - torch_rows[index].float()).abs().mean() < 0.5 for index in rows)
    loader = loader_of("dali", thirty, CROP, 2, train=False)
    with pytest.raises(ImageReadError, match=r"^image 9 "):
        list(loader)
    assert loader.state_dict() == {"epoch": 0, "consumed": 8}


DAMAGED = [file for file in CORPUS if file.outcome is Outcome.DAMAGED]


@pytest.mark.parametrize("file", DAMAGED, ids=lambda file: file.name)
def test_what_is_made_up_in_a_damaged_picture_is_not_of_the_pictures_before(tmp_path, file):
    """DALI's memory has held bright pictures or dark ones of the same size: what it makes of the damage does not tell."""
    found = []
    for level in (0, 255):
        root = tmp_path / str(level)
        write_corpus(root, (file,))
        for number in range(3):
            Image.new("RGB", (WIDTH, HEIGHT), (level,) * 3).save(root / "train" / "fine" / f"{number}.jpg")
        source, _ = open_dataset("imagefolder", root, seed=0)
        rows, errors = read("dali", source, train=False)
        assert rows[0].float().mean().round() == level
        found.append(rows.get(3, errors.get(3)))
    dark, bright = found
    assert torch.equal(dark, bright) if isinstance(dark, torch.Tensor) else dark.reason == bright.reason


def failing(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let DALI refuse some batches for no reason, the third batch first."""
    collect, calls = DaliPipeline.collect, []

    def sometimes(self):
        decoded = collect(self)
        calls.append(1)
        if 2 < len(calls) <= 2 + times:
            raise DecodeError("out of luck")
        return decoded

    monkeypatch.setattr(DaliPipeline, "collect", sometimes)


def indices(batches: list[Batch]) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches]


def test_a_batch_is_decoded_again_where_dali_fails_at_readable_images(thirty, monkeypatch):
    undisturbed = list(loader_of("dali", thirty, CROP, 8))
    failing(monkeypatch, times=1)
    found = list(loader_of("dali", thirty, CROP, 8))
    assert indices(found) == indices(undisturbed)
    for ours, theirs in zip(found, undisturbed, strict=True):
        assert (ours.images.float() - theirs.images.float()).abs().mean() < 0.3


def test_a_batch_that_dali_cannot_decode_twice_ends_the_epoch(thirty, monkeypatch):
    failing(monkeypatch, times=2)
    with pytest.raises(LoaderError, match="DALI fails at images that can be read: out of luck"):
        list(loader_of("dali", thirty, CROP, 8))


def test_what_verify_refused_is_not_decoded_though_dali_could(thirty):
    """The file is fine; what counts is what was written down."""
    root = thirty.manifest.root.parent
    path = verification_path(root / FOLDER_NAME, "train")
    path.parent.mkdir()
    complaint = BadFile("damaged", thirty.manifest.name(9), "made up")
    found = Verification(thirty.manifest.fingerprint, num_samples=33, num_checked=33, complaints={9: complaint})
    path.write_text(found.to_json())
    source, _ = open_dataset("imagefolder", root, seed=0)
    rows, errors = read("dali", source, train=False)
    assert list(errors) == [9]
    assert errors[9].reason == "made up (rlpheads verify)"
    assert rows.keys() == set(range(33)) - {9}
    with pytest.raises(DatasetError, match=r"1 of 33 images of split 'train' are known to be unreadable: image 9 "):
        loader_of("dali", source, CROP, 8)
