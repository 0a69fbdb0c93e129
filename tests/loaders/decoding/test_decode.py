"""Every kind of image file becomes red, green and blue bytes, equal to Pillow's; what is broken gives a clear error."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from rlpheads.loaders.decoding.decode import decode_rgb
from rlpheads.loaders.decoding.image_codec import decode_stored
from rlpheads.loaders.decoding.image_headers import first_gif_frame

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


RAMP = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
IN_16_BITS = (RAMP * 65535).astype(np.uint16)
PLAIN_TEXT = b"P2 30 20 1000\n" + b" ".join(b"%d" % value for value in (RAMP * 1000).astype(int).ravel())


def tiff_of_12_bits() -> bytes:
    """Pillow writes no TIFF of 12 bits: one of 16 bits with another number in its header, and packed values."""
    pairs = (RAMP * 4095).astype(np.uint16).reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    entries = [(256, WIDTH), (257, HEIGHT), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, HEIGHT)]
    entries.append((279, packed.size))
    directory = b"".join(struct.pack("<HHII", tag, 4 if tag > 270 else 3, 1, value) for tag, value in entries)
    pixels = packed.astype(np.uint8).tobytes()
    head = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    return head + pixels + struct.pack("<H", len(entries)) + directory + bytes(4)


DEEP_GREY = {
    "binary pgm": b"P5\n30 20\n65535\n" + IN_16_BITS.astype(">u2").tobytes(),
    "binary pgm to 1000": b"P5\n30 20\n1000\n" + (RAMP * 1000).astype(">u2").tobytes(),
    "plain pgm": PLAIN_TEXT,
    "tiff": encoded(Image.fromarray(IN_16_BITS), "TIFF"),
    "tiff of 12 bits": tiff_of_12_bits(),
    "jpeg 2000": encoded(Image.fromarray(IN_16_BITS), "JPEG2000"),
}


@pytest.mark.wrong("file")
@pytest.mark.parametrize("kind", DEEP_GREY)
def test_deep_grey_is_scaled_whatever_the_format(kind):
    pixels = decode_rgb(DEEP_GREY[kind])
    np.testing.assert_allclose(pixels.numpy(), np.broadcast_to(RAMP * 255, (3, HEIGHT, WIDTH)), atol=1.5)


@pytest.mark.wrong("file")
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16])
def test_a_tiff_in_which_zero_is_white_is_no_negative(dtype, compression):
    values = (RAMP > 0.5) if dtype == np.bool_ else (RAMP * np.iinfo(dtype).max).astype(dtype)
    data = encoded(Image.fromarray(values), "TIFF", compression=compression)
    entry = data.index(struct.pack("<HHI", 262, 3, 1)) + 8  # the photometric interpretation
    assert data[entry] == 1
    turned = decode_rgb(data[:entry] + b"\0" + data[entry + 1 :]).numpy()
    np.testing.assert_array_equal(turned, 255 - decode_rgb(data).numpy())


@pytest.mark.wrong("file")
@pytest.mark.parametrize(
    ("values", "reason"),
    [(RAMP.astype(np.float32), "are floating-point numbers"), ((RAMP * 2**30).astype(np.int32), "32-bit integers")],
)
def test_grey_without_a_range_is_refused_with_the_reason(values, reason):
    with pytest.raises(ValueError, match=f"{reason}.* no fixed black and white: convert it to 8 or 16 bits"):
        decode_rgb(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.wrong("file")
def test_postscript_is_no_image_and_starts_no_other_program(tmp_path, monkeypatch):
    called = tmp_path / "called"
    script = tmp_path / "gs"
    script.write_text(f"#!/bin/sh\ntouch {called}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    Image.init()
    with pytest.raises(ValueError, match="Pillow does not know the format either"):
        decode_rgb(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 60\nshowpage\n")
    assert not called.exists()


def test_a_file_of_a_format_that_is_not_listed_is_no_image():
    with pytest.raises(ValueError, match="does not know the format"):
        decode_rgb(encoded(COLOURS, "PCX"))


@pytest.mark.wrong("file")
def test_of_a_gif_with_many_frames_the_first_alone_is_decoded():
    """Nothing is read behind it: two hundred frames would take ten seconds."""
    frames = [Image.new("RGB", (40, 30), (9 * number, 0, 0)) for number in range(20)]
    many = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=10)
    extension = b"\x21\xf9"  # what a frame begins with
    assert many.count(extension) == 20
    second = many.index(extension, many.index(extension) + 1)
    damaged = many[:second] + b"\xff" * (len(many) - second)
    torch.testing.assert_close(decode_rgb(damaged), decode_rgb(many))


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
@pytest.mark.parametrize("transparency", [None, 3])
def test_the_first_frame_is_what_the_whole_gif_gives(mode, transparency):
    options = {} if transparency is None else {"transparency": transparency}
    pictures = [COLOURS.convert(mode), COLOURS.rotate(90).convert(mode)]
    data = encoded(pictures[0], "GIF", save_all=True, append_images=pictures[1:], comment=b"x" * 300, loop=0, **options)
    assert len(first_gif_frame(data)) < len(data)
    assert torch.equal(decode_rgb(data), decode_stored(data)[0])


def test_the_orientation_tag_is_not_applied():
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode_rgb(encoded(COLOURS, "JPEG", exif=turned)).shape == (3, HEIGHT, WIDTH)


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
