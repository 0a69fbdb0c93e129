"""Image files as they turn up in the wild, each with what a loader must make of it. Shared by all loaders' tests.

`CORPUS` holds the files; `write_corpus` writes them as a training split. Whatever is READ must have Pillow's pixels,
within what decoders differ in.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 60, 80


class Outcome(Enum):
    """What a loader must do with a file."""

    READ = "its picture comes, every time"
    REFUSED = "an error that names index and path, or the row is skipped"
    DAMAGED = "decoders disagree: a picture of the right size or REFUSED; always REFUSED once `rlpheads verify` saw it"


@dataclass(frozen=True)
class CorpusFile:
    """One file.

    Attributes:
        name: File name; its suffix says what the file pretends to be.
        data: Its bytes.
        outcome: What a loader must do.
        kind: What is odd about it, in words for a table.
    """

    name: str
    data: bytes
    outcome: Outcome
    kind: str = ""

    def pixels(self) -> np.ndarray:
        """What Pillow reads: uint8 (H, W, 3)."""
        return np.array(Image.open(io.BytesIO(self.data)).convert("RGB"))


def _picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Image.Image:
    """A smooth picture: decoders' rounding stays small."""
    rough = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _png_of_16_bits() -> bytes:
    """Red, green and blue in 16 bits each, which Pillow cannot write."""
    rows = [bytes([0]) + line.astype(">u2").tobytes() for line in np.asarray(_picture()).astype(np.uint16) * 257]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _encoded(_picture(), "JPEG", exif=exif)


def _flipped(data: bytes, *places: float) -> bytes:
    """Flip all bits of the bytes at some places, as fractions of the file."""
    changed = bytearray(data)
    for place in places:
        changed[int(place * len(data))] ^= 0xFF
    return bytes(changed)


def _claims(height: int, width: int) -> bytes:
    """A JPEG whose header claims another size than its body has."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def _with_scans(more: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again, as it may."""
    data = _encoded(_picture(), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * more + data[-2:]


def _gif_claims(height: int, width: int) -> bytes:
    """A GIF of few bytes whose frame reaches beyond its screen."""
    data = _encoded(_picture().convert("P"), "GIF")
    at = data.index(b"\x2c\0\0\0\0") + 5
    return data[:at] + struct.pack("<HH", width, height) + data[at + 4 :]


def _webp_claims(height: int, width: int) -> bytes:
    """A WebP of few bytes, all of whose pixels are alike."""
    data = _encoded(_picture(1, 1), "WEBP", lossless=True)
    return data[:21] + struct.pack("<I", (height - 1) << 14 | (width - 1)) + data[25:]


JPEG = _encoded(_picture(), "JPEG", quality=90)
PNG = _encoded(_picture(), "PNG")
_HALF = len(JPEG) // 2
_TWO_FRAMES = {"save_all": True, "append_images": [_picture(seed=1)]}

_KINDS: dict[tuple[str, Outcome], dict[str, bytes]] = {
    ("whole JPEG", Outcome.READ): {
        "baseline.JPEG": JPEG,
        "progressive.jpg": _encoded(_picture(), "JPEG", progressive=True),
        "subsampled_4_4_4.jpg": _encoded(_picture(), "JPEG", subsampling=0),
        "trailing_bytes.jpg": JPEG + b"left by a camera" * 8,
    },
    ("grey, CMYK, palette, transparent", Outcome.READ): {
        "grey.jpg": _encoded(_picture().convert("L"), "JPEG"),
        "cmyk.jpg": _encoded(_picture().convert("CMYK"), "JPEG"),
        "grey.png": _encoded(_picture().convert("L"), "PNG"),
        "palette.png": _encoded(_picture().convert("P"), "PNG"),
        "transparent.png": _encoded(_picture().convert("RGBA"), "PNG"),
    },
    ("16 bits a channel", Outcome.READ): {"sixteen_bits.png": _png_of_16_bits()},
    ("turned by EXIF", Outcome.READ): {"exif_rotated.jpg": _turned()},
    ("one pixel, one row", Outcome.READ): {
        "one_pixel.jpg": _encoded(_picture(1, 1), "JPEG"),
        "one_row.jpg": _encoded(_picture(1, 300), "JPEG"),
        "one_pixel.png": _encoded(_picture(1, 1), "PNG"),
        "one_column.png": _encoded(_picture(10_000, 1), "PNG"),
    },
    ("4000 x 3000 pixels", Outcome.READ): {"giant.jpg": _encoded(_picture(3000, 4000), "JPEG")},
    ("other formats, other suffix", Outcome.READ): {
        "png_in_disguise.JPEG": PNG,
        "colours.png": PNG,
        "first_of_two.gif": _encoded(_picture().convert("P"), "GIF", **_TWO_FRAMES),
        "lossless.webp": _encoded(_picture(), "WEBP", lossless=True),
        "windows.bmp": _encoded(_picture(), "BMP"),
        "scanned.tiff": _encoded(_picture(), "TIFF"),
    },
    ("empty, or no image", Outcome.REFUSED): {
        "zero_bytes.jpg": b"",
        "text.jpg": b"not an image at all " * 20,
        "web_page.png": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    },
    ("cut short: header alone, PNG, GIF, WebP", Outcome.REFUSED): {
        "header_only.jpg": JPEG[:24],
        "magic_only.png": PNG[:8],
        "png_cut_short.png": PNG[: len(PNG) // 2],
        "webp_cut_short.webp": _encoded(_picture(), "WEBP")[:60],
        "gif_cut_short.gif": _encoded(_picture().convert("P"), "GIF")[:40],
    },
    ("wrong checksum", Outcome.REFUSED): {"png_wrong_sum.png": _flipped(PNG, 0.5)},
    ("header that lies about the size", Outcome.REFUSED): {
        "claims_4_gigapixels.jpg": _claims(65500, 65500),
        "claims_no_pixels.jpg": _claims(0, 0),
        "claims_4_gigapixels.gif": _gif_claims(65500, 65500),
        "claims_268_megapixels.webp": _webp_claims(16383, 16383),
    },
    ("more scans than are decoded", Outcome.REFUSED): {"many_scans.jpg": _with_scans(200)},
    ("grey without black and white", Outcome.REFUSED): {
        "floats.tiff": _encoded(
            Image.fromarray(np.linspace(0, 1, HEIGHT * WIDTH, dtype="f").reshape(HEIGHT, WIDTH)), "TIFF"
        )
    },
    ("JPEG cut short", Outcome.DAMAGED): {
        "cut_in_half.jpg": JPEG[:_HALF],
        "without_an_end.jpg": JPEG[:-2],
        "half_with_an_end.jpg": JPEG[:_HALF] + JPEG[-2:],
    },
    ("JPEG damaged inside", Outcome.DAMAGED): {
        "extra_bytes_before_the_end.jpg": JPEG[:-2] + bytes(9) + JPEG[-2:],
        "flipped_bits.jpg": _flipped(JPEG, 0.6, 0.7, 0.8),
        "zeros_inside.jpg": JPEG[:_HALF] + bytes(64) + JPEG[_HALF + 64 :],
        "claims_more_rows.jpg": _claims(HEIGHT * 2, WIDTH),
    },
}

CORPUS = tuple(
    CorpusFile(name, data, outcome, kind) for (kind, outcome), files in _KINDS.items() for name, data in files.items()
)


def write_corpus(root: Path, files: tuple[CorpusFile, ...] = CORPUS, split: str = "train") -> dict[int, CorpusFile]:
    """Write ROOT/{train,val}/{fine,odd}/NAME: `files` as one split, undamaged pictures as the other.

    The class "fine" of the corpus' split holds three plain pictures, and "odd" the files.

    Returns:
        The files by canonical index of `open_dataset("imagefolder", root)`'s split. Every other index is a plain picture.
    """
    for name in ("train", "val"):
        for label in ("fine", "odd"):
            (root / name / label).mkdir(parents=True, exist_ok=True)
            if (name, label) != (split, "odd"):
                for number in range(3):
                    _picture(seed=10 + number).save(root / name / label / f"{number}.jpg", quality=90)
    for file in files:
        (root / split / "odd" / file.name).write_bytes(file.data)
    return {3 + place: file for place, file in enumerate(sorted(files, key=lambda file: file.name.encode()))}
