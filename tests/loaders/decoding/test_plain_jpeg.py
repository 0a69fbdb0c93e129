"""A plain JPEG is one that torchvision reads, at the size that is said; damage to its form is found without decoding."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_corpus import CORPUS, JPEG, Outcome
from PIL import Image

from rlpheads.loaders.decoding.decode import decode_rgb
from rlpheads.loaders.decoding.plain_jpeg import plain_jpeg_size


def jpeg_of(height: int, width: int, mode: str = "RGB", **options) -> bytes:
    rough = np.random.default_rng(height).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


OPTIONS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "best": {"quality": 100, "subsampling": 0},
    "worst": {"quality": 1},
    "restarts": {"restart_marker_blocks": 3},
    "own tables": {"optimize": True},
    "comment": {"comment": b"\xff\xd9 looks like the end, and is not"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (375, 500), (64, 3)])
def test_size_of_every_kind_of_plain_jpeg(size, mode, options):
    data = jpeg_of(*size, mode, **options)
    assert plain_jpeg_size(data) == size == tuple(decode_rgb(data).shape[1:])
    assert plain_jpeg_size(data + b"left by a camera") == size


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.name)
def test_plain_files_of_the_corpus_are_read_at_the_size_that_is_said(file):
    size = plain_jpeg_size(file.data)
    assert size is None or file.outcome is not Outcome.REFUSED
    if file.outcome is Outcome.READ and size is not None:
        assert size == file.pixels().shape[:2]


@pytest.mark.parametrize("cut", [1, 2, 30, 500, 1000])
def test_a_file_that_ends_too_early_is_not_plain(cut):
    assert plain_jpeg_size(JPEG[:-cut]) is None


@pytest.mark.long
@given(st.integers(0, len(JPEG) - 1))
def test_no_beginning_of_a_file_is_plain(length):
    assert plain_jpeg_size(JPEG[:length]) is None


@pytest.mark.long
@given(st.lists(st.tuples(st.integers(0, len(JPEG) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damaged_file_gives_a_picture_or_an_error(changes):
    damaged = bytearray(JPEG)
    for at, value in changes:
        damaged[at] = value
    size = plain_jpeg_size(bytes(damaged))
    assert size is None or min(size) > 0


@given(st.binary(max_size=300))
def test_random_bytes_are_not_a_plain_jpeg(data):
    assert plain_jpeg_size(data) is None
    assert plain_jpeg_size(b"\xff\xd8" + data) is None


def with_adobe_marker(transform: int) -> bytes:
    body = b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform)
    return JPEG[:2] + b"\xff\xee" + struct.pack(">H", len(body) + 2) + body + JPEG[2:]


def test_colours_that_decoders_may_take_for_others_are_not_plain():
    assert plain_jpeg_size(jpeg_of(8, 8, "CMYK")) is None
    assert plain_jpeg_size(with_adobe_marker(0)) is None
    assert plain_jpeg_size(with_adobe_marker(1)) == plain_jpeg_size(JPEG)
    frame = JPEG.index(b"\xff\xc0")
    by_letter = bytearray(JPEG)
    for component, letter in enumerate(b"RGB"):
        by_letter[frame + 10 + 3 * component] = letter
    assert plain_jpeg_size(bytes(by_letter)) is None


@pytest.mark.parametrize("frame", [0xC3, 0xC5, 0xC9, 0xCB])
def test_lossless_hierarchical_and_arithmetic_coding_are_not_plain(frame):
    assert plain_jpeg_size(JPEG.replace(b"\xff\xc0", bytes((0xFF, frame)), 1)) is None


def test_twelve_bits_are_not_plain():
    frame = JPEG.index(b"\xff\xc0")
    assert plain_jpeg_size(JPEG[: frame + 4] + b"\x0c" + JPEG[frame + 5 :]) is None


def test_a_size_that_the_bytes_cannot_hold_is_not_plain():
    frame = JPEG.index(b"\xff\xc0") + 5
    claims = JPEG[:frame] + struct.pack(">HH", 8000, 8000) + JPEG[frame + 4 :]
    assert plain_jpeg_size(claims) is None
