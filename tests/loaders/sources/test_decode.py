"""Every kind of image file becomes red, green and blue bytes, equal to Pillow's; what is broken gives a clear error."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import encode_jpeg

from rlpheads.loaders.sources.decode import decode_rgb

HEIGHT, WIDTH = 20, 30
COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


FILES = {
    "jpeg": encoded(COLOURS, "JPEG"),
    "progressive jpeg": encoded(COLOURS, "JPEG", progressive=True),
    "grey jpeg": encoded(COLOURS.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(COLOURS.convert("CMYK"), "JPEG"),
    "png": encoded(COLOURS, "PNG"),
    "palette png": encoded(COLOURS.convert("P"), "PNG"),
    "transparent png": encoded(COLOURS.convert("RGBA"), "PNG"),
    "transparent grey png": encoded(COLOURS.convert("LA"), "PNG"),
    "black and white png": encoded(COLOURS.convert("1"), "PNG"),
    "gif": encoded(COLOURS, "GIF"),
    "moving gif": encoded(COLOURS, "GIF", save_all=True, append_images=[COLOURS.rotate(180)]),
    "webp": encoded(COLOURS, "WEBP", lossless=True),
    "moving webp": encoded(COLOURS, "WEBP", lossless=True, save_all=True, append_images=[COLOURS.rotate(180)]),
    "bmp": encoded(COLOURS, "BMP"),
    "tiff": encoded(COLOURS, "TIFF"),
    "ppm": encoded(COLOURS, "PPM"),
    "one pixel": encoded(COLOURS.crop((0, 0, 1, 1)), "JPEG"),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_is_read_as_pillow_reads_it(kind):
    pixels = decode_rgb(FILES[kind])
    theirs = np.array(Image.open(io.BytesIO(FILES[kind])).convert("RGB"))
    assert pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), theirs)


def test_sixteen_bits_are_scaled_to_eight():
    values = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 100
    pixels = decode_rgb(encoded(Image.fromarray(values), "PNG"))
    assert pixels.dtype == torch.uint8
    expected = np.broadcast_to(values / 257, (3, HEIGHT, WIDTH))
    np.testing.assert_allclose(pixels.numpy(), expected, atol=1.0)


def test_the_orientation_tag_is_not_applied():
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode_rgb(encoded(COLOURS, "JPEG", exif=turned)).shape == (3, HEIGHT, WIDTH)


def test_a_jpeg_of_torchvision_is_read_too():
    flat = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    assert torch.equal(decode_rgb(encode_jpeg(flat).numpy().tobytes()), flat)


@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"not an image at all " * 20, "Pillow does not know the format either"),
        (FILES["jpeg"][: len(FILES["jpeg"]) // 2], "incomplete or truncated"),
        (FILES["jpeg"][:20], "incomplete or truncated"),
        (FILES["png"][:300], "truncated"),
        (FILES["webp"][:100], "Pillow"),
        (FILES["gif"][:40], "Pillow"),
        (FILES["tiff"][:60], "Pillow"),
    ],
)
def test_what_is_not_a_whole_image_is_refused(data, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        decode_rgb(data)
    assert "\n" not in str(caught.value)
    assert ".cpp" not in str(caught.value)
