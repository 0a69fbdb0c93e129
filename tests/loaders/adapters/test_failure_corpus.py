"""The torch loader and the files of the corpus: every outcome as stated, with and without workers."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_corpus import CORPUS, JPEG, PNG, CorpusFile, Outcome, write_corpus

from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import ImageReadError, LoaderError
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.decoding.decode import decode_rgb
from rlpheads.loaders.decoding.image_headers import image_size
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources import image_folder
from rlpheads.loaders.sources.datasets import ImageSource, open_dataset

CROP = CropSpec(32)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> tuple[Path, dict[int, CorpusFile]]:
    root = tmp_path_factory.mktemp("corpus")
    return root, write_corpus(root)


def load(source: ImageSource, batch_size: int, *, train: bool = False, **options):
    order = Order(source.manifest.num_samples, batch_size, shuffle=False, partial="pad")
    return make_loader("torch", source, order, CROP, train=train, options=LoaderOptions(**options))


@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("train", [True, False])
def test_every_file_of_the_corpus_comes_out_as_stated(tree, train, num_workers):
    root, files = tree
    source, _ = open_dataset("imagefolder", root, seed=0)
    rows = {}
    errors = {}
    for batch in load(source, 8, train=train, num_workers=num_workers, on_error="skip"):
        rows |= {int(index): image for index, image in zip(batch.index, batch.images, strict=True) if index >= 0}
        errors |= {error.index: error for error in batch.skipped}
    assert rows.keys() | errors.keys() == set(range(source.manifest.num_samples))
    assert not rows.keys() & errors.keys()
    outcomes = {Outcome.READ: rows.keys(), Outcome.REFUSED: errors.keys()}
    wrong = [file.name for index, file in files.items() if index not in outcomes.get(file.outcome, files)]
    assert not wrong
    assert set(range(3)) <= rows.keys(), "the pictures beside them"
    for index, error in errors.items():
        assert error.path == str(root / "train" / "odd" / files[index].name)


@pytest.mark.parametrize("file", [file for file in CORPUS if file.outcome is Outcome.READ], ids=lambda file: file.name)
def test_what_is_read_is_the_picture_that_pillow_reads(file):
    pixels_HWC = decode_rgb(file.data).permute(1, 2, 0).numpy()
    if file.name == "sixteen_bits.png":
        np.testing.assert_allclose(pixels_HWC.astype(int), file.pixels(), atol=1)
    else:
        np.testing.assert_array_equal(pixels_HWC, file.pixels())


@pytest.mark.wrong("file")
@pytest.mark.parametrize(
    "file", [file for file in CORPUS if file.outcome is Outcome.REFUSED], ids=lambda file: file.name
)
def test_each_refused_file_ends_a_strict_epoch_by_name(tmp_path, file):
    write_corpus(tmp_path, (file,))
    source, _ = open_dataset("imagefolder", tmp_path, seed=0)
    batches = iter(load(source, 1))
    assert [next(batches).index.item() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ImageReadError) as caught:
        next(batches)
    assert (caught.value.index, caught.value.path) == (3, str(tmp_path / "train" / "odd" / file.name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_vanishes_in_the_middle_of_an_epoch_is_named(tmp_path, num_workers):
    write_corpus(tmp_path, tuple(CorpusFile(f"{number}.jpg", JPEG, Outcome.READ) for number in range(30)))
    source, _ = open_dataset("imagefolder", tmp_path, seed=0)
    loader = load(source, 2, num_workers=num_workers, prefetch=1)
    batches = iter(loader)
    next(batches)
    last = source.manifest.path(32)
    last.unlink()
    with pytest.raises(ImageReadError, match=r"image 32 .*No such file") as caught:
        list(batches)
    assert caught.value.path == str(last)
    assert loader.state_dict()["consumed"] == 32


@pytest.mark.long
@given(st.sampled_from([JPEG, PNG]), st.lists(st.tuples(st.integers(2, 1505), st.integers(0, 255)), max_size=4))
def test_no_damage_ends_the_process(data, changes):
    """It did: torchvision's PNG decoder jumps out of freed memory at a wrong checksum."""
    changed = bytearray(data)
    for at, value in changes:
        changed[at] = value
    try:
        pixels = decode_rgb(bytes(changed))
    except ValueError as error:
        assert str(error)
    else:
        assert pixels.dtype == torch.uint8
        assert pixels.shape[0] == 3


@pytest.mark.long
@pytest.mark.timeout(90)
def test_a_worker_that_dies_in_a_decoder_ends_the_epoch_and_hangs_nothing(tmp_path, monkeypatch):
    """The process is ended by a signal while it reads one of the images, as a bug in a decoder would."""
    write_corpus(tmp_path, tuple(CorpusFile(f"{number:02d}.jpg", JPEG, Outcome.READ) for number in range(30)))
    (tmp_path / "train" / "odd" / "07.jpg").write_bytes(JPEG + bytes(1000))
    here = os.getpid()

    def dies(data: bytes) -> torch.Tensor:
        if data.endswith(bytes(1000)) and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGSEGV)
        return decode_rgb(data)

    monkeypatch.setattr(image_folder, "decode_rgb", dies)
    source, _ = open_dataset("imagefolder", tmp_path, seed=0)
    named = rf"^a loader worker died while it read image 10 \({tmp_path}/train/odd/07\.jpg\)"
    with pytest.raises(LoaderError, match=named):
        list(load(source, 2, num_workers=2, prefetch=1))


@pytest.mark.parametrize("file", [file for file in CORPUS if file.outcome is Outcome.READ], ids=lambda file: file.name)
def test_the_header_says_the_size_of_what_is_decoded(file):
    size = image_size(file.data)
    assert size == file.pixels().shape[:2] if size else not file.data.startswith((JPEG[:2], PNG[:8]))


@given(st.binary(max_size=60), st.sampled_from([b"", JPEG[:2], PNG[:8], JPEG[:160], PNG[:20]]))
def test_random_bytes_have_no_size_and_raise_nothing(rubbish, start):
    size = image_size(start + rubbish)
    assert size is None or min(size) >= 0
