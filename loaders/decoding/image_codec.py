"""The one door to torch's own image codecs: torchcodec's where it is installed, else torchvision's, which are deprecated.

Both decode JPEG, GIF and WebP to the same pixels. torchcodec turns an image as its EXIF orientation says and cannot be asked
not to; the EXIF data are therefore hidden from it, by another name in a copy of the bytes. So every file has one decoder,
whatever is done about orientation, and none of torchvision's is needed once they are gone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from rlpheads.loaders.decoding.image_headers import JPEG_SIGNATURE

Decoder = Callable[[bytes], Tensor]
Encoder = Callable[[Tensor, int], Tensor]
_SIGNATURES = (JPEG_SIGNATURE, b"GIF87a", b"GIF89a")


def load_codec() -> None:
    """Import the library that decodes, which the first image would wait for: for seconds, on a slow machine."""
    _codec()


def decode_stored(data: bytes) -> Tensor:
    """Decode a JPEG, GIF or WebP file, its pixels as they are stored: uint8 (3, H, W), or (N, 3, H, W) of an animation.

    Raises:
        ValueError: It is another format, or cannot be decoded, with the reason.
    """
    return _codec()[0](data)


def encode_jpeg(pixels_3HW: Tensor, quality: int) -> bytes:
    """Encode uint8 (3, H, W), contiguous, as a JPEG file of a quality from 1 to 100."""
    return _codec()[1](pixels_3HW, quality).numpy().tobytes()


@cache
def _codec() -> tuple[Decoder, Encoder]:
    """Return the decoder and the encoder, imported at first use: torchcodec takes a second."""
    try:
        return _torchcodec()
    except (ImportError, OSError, RuntimeError):  # not installed, or its libraries do not fit this torch
        return _torchvision()


def _torchcodec() -> tuple[Decoder, Encoder]:
    from torchcodec.decoders import decode_image
    from torchcodec.encoders import JpegEncoder

    def decode(data: bytes) -> Tensor:
        if not data.startswith(_SIGNATURES) and data[8:12] != b"WEBP":  # it knows more, which Pillow decodes for both
            raise ValueError("torchcodec does not know the format.")
        try:
            return decode_image(_tensor_of(hide_exif(data)), mode="RGB")
        except RuntimeError as error:
            raise ValueError(_last_words(error)) from error

    return decode, lambda pixels_3HW, quality: JpegEncoder(pixels_3HW).to_tensor(quality=quality)


def _torchvision() -> tuple[Decoder, Encoder]:
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.io import encode_jpeg as encode

    def quietly(function: Callable[..., Tensor], *arguments: object, **settings: object) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "The image decoding and encoding capabilities of TorchVision are deprecated"
            )
            return function(*arguments, **settings)

    def decode(data: bytes) -> Tensor:
        try:
            return quietly(decode_image, _tensor_of(data), mode=ImageReadMode.RGB)
        except RuntimeError as error:
            if "Unsupported image file" in str(error):
                raise ValueError("torchvision does not know the format.") from error
            raise ValueError(_last_words(error)) from error

    return decode, lambda pixels_3HW, quality: quietly(encode, pixels_3HW, quality=quality)


def hide_exif(data: bytes) -> bytes:
    """Return a JPEG or WebP file without EXIF data that a decoder would find; the very bytes where there are none."""
    if data.startswith(JPEG_SIGNATURE):
        return _rename_app1(data)
    return _rename_exif_chunk(data) if data[:4] == b"RIFF" else data


def _rename_app1(data: bytes) -> bytes:
    """Make segments APP15 of a JPEG file's segments APP1, in front of its first scan (ITU T.81, B.1.1.3)."""
    renamed, position = bytearray(), 2
    while data[position : position + 1] == b"\xff" and (marker := data[position + 1 : position + 2]) != b"\xda":
        if marker == b"\xe1":
            renamed = renamed or bytearray(data)
            renamed[position + 1] = 0xEF
        # A fill byte, or a segment with its length, which counts itself.
        position += 1 if marker in (b"\xff", b"") else 2 + int.from_bytes(data[position + 2 : position + 4])
    return bytes(renamed) or data


def _rename_exif_chunk(data: bytes) -> bytes:
    """Rename the chunks EXIF of a WebP file, which follow one another behind the header (RFC 9649, 2.3)."""
    renamed, position = bytearray(), 12
    while position + 8 <= len(data):
        if data[position : position + 4] == b"EXIF":
            renamed = renamed or bytearray(data)
            renamed[position : position + 4] = b"-XIF"
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + size + size % 2  # a byte pads an odd size
    return bytes(renamed) or data


def _tensor_of(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _last_words(error: RuntimeError) -> str:
    """Return what a codec says, without the place in its source that it begins with."""
    return str(error).splitlines()[0].rpartition(", ")[2]
