"""Size of an image from the first bytes of its file, without decoding it."""

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
