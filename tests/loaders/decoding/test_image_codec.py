"""The door to torch's codecs: torchvision's where torchcodec is missing, the same pixels by both, and no warning."""

import io
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from rlpheads.loaders.decoding import image_codec
from rlpheads.loaders.decoding.image_codec import decode_stored, encode_jpeg, hide_exif

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))


def file_of(kind: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    PICTURE.save(file, kind, **({} if kind == "GIF" else {"exif": exif.tobytes()}))
    return file.getvalue()


@pytest.fixture(params=["torchcodec", "torchvision"])
def codec(request, monkeypatch) -> str:
    if request.param == "torchcodec":
        pytest.importorskip("torchcodec")
    else:
        monkeypatch.setitem(sys.modules, "torchcodec", None)
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    image_codec._codec.cache_clear()
    yield request.param
    image_codec._codec.cache_clear()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_pixels_are_those_of_the_file_whatever_its_orientation_and_nothing_warns(codec, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored = decode_stored(file_of(kind, 6))
    pixels = stored[0] if stored.ndim == 4 else stored
    with Image.open(io.BytesIO(file_of(kind))) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - expected).max() <= (2 if kind == "WEBP" else 0)


def test_a_jpeg_goes_there_and_back(codec):
    flat = torch.full((3, 16, 24), 100, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(decode_stored(encode_jpeg(flat, 90)), flat)


@pytest.mark.wrong("file")
@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"%PDF", "does not know the format"), (file_of("JPEG")[:-300], "Image is incomplete or truncated")],
)
def test_what_cannot_be_decoded_says_why(codec, data, reason):
    with pytest.raises(ValueError, match=reason):
        decode_stored(data)


def test_hidden_exif_is_found_by_no_decoder():
    for kind in ("JPEG", "WEBP"):
        with Image.open(io.BytesIO(hide_exif(file_of(kind, 6)))) as image:
            assert image.getexif().get(0x0112, 1) == 1
    twice = b"\xff\xd8" + 2 * (b"\xff\xe1\x00\x06\xff\xe1\xff\xe1") + b"\xff\xda\xff\xe1"
    assert hide_exif(twice) == b"\xff\xd8" + 2 * (b"\xff\xef\x00\x06\xff\xe1\xff\xe1") + b"\xff\xda\xff\xe1"
    for cut in range(len(twice)):
        assert len(hide_exif(twice[:cut])) == cut
    plain = file_of("GIF")
    assert hide_exif(plain) is plain


def test_only_chunks_of_a_webp_are_renamed():
    """Four bytes of an image's data may read EXIF, and an odd size is padded."""
    chunks = b"VP8X\x05\x00\x00\x00EXIF!\x00", b"VP8L\x08\x00\x00\x00EXIFEXIF", b"EXIF\x04\x00\x00\x00EXIF"
    header = b"RIFF" + (4 + sum(map(len, chunks))).to_bytes(4, "little") + b"WEBP"
    file = header + b"".join(chunks)
    assert hide_exif(file) == header + b"".join(chunks[:2]) + b"-XIF\x04\x00\x00\x00EXIF"
    without = header + b"".join(chunks[:2])
    assert hide_exif(without) is without
    for cut in range(len(file)):
        assert len(hide_exif(file[:cut])) == cut
