"""How long one image within the loaders' bounds may take to decode: processor seconds at 3 million pixels, and at the most.

`python benchmarks/bench_decode_cost.py` prints a line for each format: of noise (nothing costs more), and of one colour.
"""

import io
import time

import numpy as np
import torch
from PIL import Image

from rlpheads.loaders.decoding.decode import decode_rgb
from rlpheads.loaders.decoding.image_headers import MOST_PIXELS

SIDES = (1500, 2000)
FORMATS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 95},
    "JPEG, progressive": {"quality": 95, "progressive": True},
    "PNG": {},
    "TIFF, LZW": {"compression": "tiff_lzw"},
    "WEBP": {},
    "WEBP, lossless": {"lossless": True, "method": 0},
    "JPEG2000": {},
    "AVIF": {"speed": 10},
    "GIF": {},
}


def measure(image: Image.Image, name: str) -> tuple[int, float]:
    """Return the bytes of an image in a format, and the least processor time of three decodings, in seconds."""
    file = io.BytesIO()
    image.save(file, name.partition(",")[0], **FORMATS[name])
    seconds = []
    for _ in range(3):
        began = time.process_time()
        decode_rgb(file.getvalue())
        seconds.append(time.process_time() - began)
    return len(file.getvalue()), min(seconds)


def main() -> None:
    """Measure every format."""
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).integers(0, 256, (*SIDES, 3), dtype=np.uint8)
    images = {"noise": Image.fromarray(noise), "one colour": Image.new("RGB", SIDES[::-1], (9, 99, 199))}
    scale = MOST_PIXELS / (SIDES[0] * SIDES[1])
    for name in FORMATS:
        for kind, image in images.items():
            num_bytes, seconds = measure(image, name)
            print(
                f"{name:20}{kind:12}{num_bytes:>11,} bytes {seconds:6.2f} s; at {MOST_PIXELS:,} pixels {seconds * scale:5.1f} s"
            )


if __name__ == "__main__":
    main()
