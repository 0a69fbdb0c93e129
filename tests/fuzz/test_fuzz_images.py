"""Mutations of real files of every format that is read: a picture or a ValueError; no crash, no hang, bounded memory."""

import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from image_corpus import CORPUS, Outcome
from mutations import mutate_bytes, run_cases
from PIL import Image

from rlpheads.loaders.decoding.decode import decode_rgb
from rlpheads.loaders.decoding.image_headers import MOST_PIXELS, PNG_SIGNATURE
from rlpheads.loaders.decoding.plain_jpeg import plain_jpeg_size

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3600)]
MOST_BYTES = 2 << 30
SECONDS = 60.0
CASES = 1000
"""Mutations of each file."""


def picture(mode: str = "RGB") -> Image.Image:
    rough = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((40, 30), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def frames(kind: str, **options) -> bytes:
    return encoded(
        picture(), kind, save_all=True, append_images=[picture().rotate(90), picture().rotate(180)], **options
    )


GREY_16 = Image.fromarray((np.linspace(0, 65535, 1200).reshape(30, 40)).astype(np.uint16))
FILES = {
    "jpeg": encoded(picture(), "JPEG"),
    "jpeg progressive": encoded(picture(), "JPEG", progressive=True),
    "jpeg grey restarts": encoded(picture("L"), "JPEG", restart_marker_blocks=2),
    "jpeg cmyk": encoded(picture("CMYK"), "JPEG"),
    "mpo": frames("MPO"),
    "png": encoded(picture(), "PNG"),
    "png palette": encoded(picture("P"), "PNG", transparency=3),
    "png grey 16": encoded(GREY_16, "PNG"),
    "apng": frames("PNG"),
    "gif": encoded(picture("P"), "GIF"),
    "gif frames": frames("GIF", loop=0, comment=b"a comment"),
    "webp": encoded(picture(), "WEBP"),
    "webp lossless": encoded(picture("RGBA"), "WEBP", lossless=True),
    "webp frames": frames("WEBP"),
    "bmp": encoded(picture(), "BMP"),
    "bmp palette": encoded(picture("P"), "BMP"),
    "dib": encoded(picture(), "DIB"),
    "tiff": encoded(picture(), "TIFF"),
    "tiff grey 16": encoded(GREY_16, "TIFF"),
    "tiff lzw": encoded(picture(), "TIFF", compression="tiff_lzw"),
    "tiff deflate": encoded(picture(), "TIFF", compression="tiff_adobe_deflate"),
    "tiff jpeg": encoded(picture(), "TIFF", compression="jpeg"),
    "tiff fax": encoded(picture("1"), "TIFF", compression="group4"),
    "tiff frames": frames("TIFF"),
    "pbm": encoded(picture("1"), "PPM"),
    "pgm": encoded(picture("L"), "PPM"),
    "pgm 16": encoded(GREY_16, "PPM"),
    "ppm": encoded(picture(), "PPM"),
    "plain ppm": b"P3 4 2 255 " + b" ".join(b"%d" % value for value in range(24)),
    "jp2": encoded(picture(), "JPEG2000"),
    "jp2 grey 16": encoded(GREY_16, "JPEG2000"),
    "j2k": encoded(picture(), "JPEG2000", no_jp2=True),
    "avif": encoded(picture(), "AVIF"),
    "avif frames": frames("AVIF"),
}
OTHERS = [file.data for file in CORPUS if file.outcome is Outcome.READ and len(file.data) < 20_000]


def with_right_sums(data: bytes) -> bytes:
    """Make a PNG's checksums right again, so that damage is met behind them."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    whole, at = bytearray(data), 8
    while at + 12 <= len(whole):
        (length,) = struct.unpack_from(">I", whole, at)
        end = at + 8 + length
        if end + 4 > len(whole):
            break
        struct.pack_into(">I", whole, end, zlib.crc32(whole[at + 4 : end]))
        at = end + 4
    return bytes(whole)


@pytest.mark.parametrize("kind", FILES)
def test_no_mutation_of_a_file_crashes_hangs_or_takes_more_memory_than_an_image_may(kind):
    def check(case: int) -> None:
        rng = random.Random(f"{kind}{case}")
        data = mutate_bytes(FILES[kind], rng, OTHERS)
        if rng.random() < 0.7:
            data = with_right_sums(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size = plain_jpeg_size(data)
            assert size is None or size[0] * size[1] <= MOST_PIXELS
            try:
                pixels = decode_rgb(data)
            except ValueError as error:
                assert str(error)
                assert "\n" not in str(error), "one line"
                return
        assert pixels.dtype == torch.uint8
        assert pixels.shape[0] == 3
        assert 0 < pixels.numel() <= 3 * MOST_PIXELS

    check(0)
    report = run_cases(check, range(CASES), seconds=SECONDS)
    assert not report.failures, f"{len(report.failures)} of {report.cases}: " + "\n".join(report.failures[:5])
    assert report.peak_bytes < MOST_BYTES
