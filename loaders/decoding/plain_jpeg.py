"""Detect plain JPEGs: files that every decoder reads alike, and whose size the header gives."""

from __future__ import annotations

from rlpheads.loaders.decoding.image_headers import check_budget

_START, _END, _SCAN, _ADOBE = 0xD8, 0xD9, 0xDA, 0xEE
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Baseline, extended and progressive. The others are lossless, hierarchical or arithmetic coding."""
_OTHER_SEGMENTS = frozenset({0xC4, _SCAN, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
"""Tables, restart intervals, comments and applications' own."""
_COLOUR_BY_LETTER = b"RGB"
_MOST_PIXELS_A_BYTE = 256
"""A file that claims more is left to the decoder that refuses impossible claims: two bits code the emptiest block."""


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) in pixels of a plain JPEG; None for any other file.

    Plain is Huffman-coded 8-bit grey or YCbCr, with every segment in its place up to the coded data (ITU T.81, B.2), and
    with an end: a file that was cut short has none. Damage inside the coded data is what `rlpheads verify` finds. A few
    microseconds.
    """
    if data[:2] != bytes((0xFF, _START)):
        return None
    size = None
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        body = data[position + 4 : position + 2 + int.from_bytes(data[position + 2 : position + 4])]
        if marker == 0xFF:
            position += 1  # a fill byte
            continue
        if marker in _HUFFMAN_FRAMES:
            size = _plain_size(body)
        elif marker not in _OTHER_SEGMENTS or (marker == _ADOBE and body[:5] == b"Adobe" and body[11:12] != b"\x01"):
            return None
        position += 4 + len(body)
        if marker == _SCAN:
            return size if size is not None and _has_plausible_data(data, position, size) else None
    return None


def _has_plausible_data(data: bytes, start: int, size: tuple[int, int]) -> bool:
    """Whether the coded data from `start` on has an end, is within the budget, and could be an image of that size."""
    try:
        check_budget(data)
    except ValueError:
        return False
    is_whole = data.rfind(bytes((0xFF, _END)), start) > start
    return is_whole and size[0] * size[1] <= _MOST_PIXELS_A_BYTE * len(data)


def _plain_size(frame: bytes) -> tuple[int, int] | None:
    """Return the size in a frame header of 8-bit grey or YCbCr."""
    if len(frame) < 9 or frame[0] != 8 or frame[5] not in (1, 3) or frame[6::3][:3] == _COLOUR_BY_LETTER:
        return None
    height, width = int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])
    return (height, width) if height and width else None
