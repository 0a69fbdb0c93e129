"""Size of an image from the first bytes of its file, and where the first frame of a GIF ends, without decoding it."""

from __future__ import annotations

import struct

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_TWO_WORDS = struct.Struct(">HH").unpack_from
_TWO_LONGS = struct.Struct(">II").unpack_from
_JPEG_SIZE_MARKERS = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}  # the others are tables
_JPEG_MARKERS_WITHOUT_LENGTH = frozenset({0xFF01, *range(0xFFD0, 0xFFD9)})


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) in pixels as the header of a JPEG or PNG file says; None for another or a damaged file.

    About a microsecond: what depends on the size, such as a random crop, can be drawn for a whole batch before any
    image is decoded.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg_size(data)
        if data.startswith(PNG_SIGNATURE) and data[12:16] == b"IHDR":
            width, height = _TWO_LONGS(data, 16)
            return height, width
    except struct.error:  # the file ends in the middle of its header
        pass
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Walk from segment to segment to the frame header (ITU T.81, B.2.2)."""
    position = 2
    while True:
        marker, length = _TWO_WORDS(data, position)
        if marker in _JPEG_SIZE_MARKERS:
            return _TWO_WORDS(data, position + 5)
        if marker == 0xFFFF:  # a fill byte
            position += 1
        elif marker in _JPEG_MARKERS_WITHOUT_LENGTH:
            position += 2
        elif marker < 0xFF00 or length < 2:
            return None
        else:
            position += 2 + length


_GIF_SIGNATURES = (b"GIF87a", b"GIF89a")
_GIF_EXTENSION, _GIF_FRAME, _GIF_END = 0x21, 0x2C, b";"


def gif_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) in pixels as the header of a GIF file says; None for another or a damaged file."""
    if data[:6] not in _GIF_SIGNATURES or len(data) < 10:
        return None
    return int.from_bytes(data[8:10], "little"), int.from_bytes(data[6:8], "little")


def first_gif_frame(data: bytes) -> bytes:
    """Return a GIF file of several frames as one of its first frame alone; any other or a damaged file as it is.

    The decoder of torchvision decodes every frame, whatever is made of them (GIF89a, 12-26, says where one ends).
    """
    if data[:6] not in _GIF_SIGNATURES:
        return data
    try:
        position = 13 + _colour_table_bytes(data[10])
        while data[position] == _GIF_EXTENSION:
            position = _after_sub_blocks(data, position + 2)
        if data[position] != _GIF_FRAME:
            return data
        end = _after_sub_blocks(data, position + 11 + _colour_table_bytes(data[position + 9]))
    except IndexError:  # the file ends before its first frame does
        return data
    return data[:end] + _GIF_END


def _colour_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_sub_blocks(data: bytes, position: int) -> int:
    """Walk over sub-blocks, each behind a byte with its length, to behind the empty one that ends them."""
    while length := data[position]:
        position += 1 + length
    return position + 1
