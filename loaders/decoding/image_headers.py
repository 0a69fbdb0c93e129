"""What an image costs to decode, from its header: size, scans, first frame of a GIF; and the budget that it must keep to."""

from __future__ import annotations

import struct

MOST_PIXELS = 178_956_970
"""Larger images are refused: half a gigabyte once decoded. Pillow's own limit, twice its `Image.MAX_IMAGE_PIXELS`."""

MOST_SCANS = 100
"""Scans of a JPEG. Encoders write about ten in a progressive one; each passes over every pixel anew."""

MOST_SCANNED_PIXELS = 12 * MOST_PIXELS
"""Scans times pixels of a JPEG: some ten seconds. The largest image that is allowed may be progressive as usual."""

JPEG_SIGNATURE = b"\xff\xd8"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_TWO_WORDS = struct.Struct(">HH").unpack_from
_TWO_LONGS = struct.Struct(">II").unpack_from
_TWO_SHORTS = struct.Struct("<HH").unpack_from
_JPEG_SIZE_MARKERS = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}  # the others are tables
_PROGRESSIVE_FRAMES = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_START_OF_SCAN = b"\xff\xda"
_JPEG_MARKERS_WITHOUT_LENGTH = frozenset({0xFF01, *range(0xFFD0, 0xFFD9)})


def check_budget(data: bytes) -> None:
    """Refuse a file whose header claims, or whose scans take, more than an image may cost. A few microseconds.

    Raises:
        ValueError: If so, with what it has and what is allowed.
    """
    height, width = claimed_size(data) or (1, 1)
    if height * width > MOST_PIXELS:
        raise ValueError(f"it has {height} x {width} pixels, more than the {MOST_PIXELS:,} that are decoded")
    num_scans = count_scans(data)
    if num_scans > MOST_SCANS:
        raise ValueError(f"it has {num_scans} scans, more than the {MOST_SCANS} that are decoded")
    if num_scans * height * width > MOST_SCANNED_PIXELS:
        raise ValueError(
            f"it has {num_scans} scans of {height} x {width} pixels, more than the {MOST_SCANNED_PIXELS:,} pixels that are "
            "decoded in all scans together"
        )


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) in pixels as the header of a JPEG or PNG file says; None for another or a damaged file.

    About a microsecond: what depends on the size, such as a random crop, can be drawn for a whole batch before any
    image is decoded.
    """
    try:
        if data.startswith(JPEG_SIGNATURE):
            return _jpeg_size(data)
        if data.startswith(PNG_SIGNATURE) and data[12:16] == b"IHDR":
            width, height = _TWO_LONGS(data, 16)
            return height, width
    except struct.error:  # the file ends in the middle of its header
        pass
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    position = _jpeg_frame(data)
    return None if position is None else _TWO_WORDS(data, position + 5)


def _jpeg_frame(data: bytes) -> int | None:
    """Walk from segment to segment to the frame header, and return where it begins (ITU T.81, B.2.2)."""
    position = 2
    while True:
        marker, length = _TWO_WORDS(data, position)
        if marker in _JPEG_SIZE_MARKERS:
            return position
        if marker == 0xFFFF:  # a fill byte
            position += 1
        elif marker in _JPEG_MARKERS_WITHOUT_LENGTH:
            position += 2
        elif marker < 0xFF00 or length < 2:
            return None
        else:
            position += 2 + length


def count_scans(data: bytes) -> int:
    """Return how many scans a decoder goes through in a JPEG file, each over the whole image; 1 for other files.

    Where the first scan of a sequential frame has all components it is the only one, and the rest is not searched.
    Elsewhere markers of scans are counted wherever they stand, so those of an embedded thumbnail too.
    """
    try:
        frame = _jpeg_frame(data) if data.startswith(JPEG_SIGNATURE) else None
        if frame is None:
            return 1
        scan = data.find(_START_OF_SCAN, frame)
        is_sequential = data[frame + 1] not in _PROGRESSIVE_FRAMES
        if scan < 0 or (is_sequential and data[scan + 4] >= data[frame + 9]):
            return 1
    except (struct.error, IndexError):  # the file ends in the middle of its header
        return 1
    return data.count(_START_OF_SCAN, scan)


def claimed_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) in pixels that a JPEG, PNG, GIF or WebP file has a decoder take memory for; None for others."""
    return image_size(data) or _gif_size(data) or _webp_size(data)


_GIF_SIGNATURES = (b"GIF87a", b"GIF89a")
_GIF_EXTENSION, _GIF_FRAME, _GIF_END = 0x21, 0x2C, b";"
_WEBP_SIDE = (1 << 14) - 1


def _gif_size(data: bytes) -> tuple[int, int] | None:
    """Return the larger sides of a GIF's screen and of its first frame, which may reach beyond it."""
    if data[:6] not in _GIF_SIGNATURES:
        return None
    try:
        width, height = _TWO_SHORTS(data, 6)
        if (frame := _first_frame_start(data)) is not None:
            frame_width, frame_height = _TWO_SHORTS(data, frame + 5)
            height, width = max(height, frame_height), max(width, frame_width)
    except (struct.error, IndexError):  # the file ends before its first frame
        return None
    return height, width


def first_gif_frame(data: bytes) -> bytes:
    """Return a GIF file of several frames as one of its first frame alone; any other or a damaged file as it is.

    The decoder of torchvision decodes every frame, whatever is made of them (GIF89a, 12-26, says where one ends).
    """
    if data[:6] not in _GIF_SIGNATURES:
        return data
    try:
        position = _first_frame_start(data)
        if position is None:
            return data
        end = _after_sub_blocks(data, position + 11 + _colour_table_bytes(data[position + 9]))
    except IndexError:  # the file ends before its first frame does
        return data
    return data[:end] + _GIF_END


def _first_frame_start(data: bytes) -> int | None:
    """Return where the descriptor of a GIF's first frame begins; None where something else comes first."""
    position = 13 + _colour_table_bytes(data[10])
    while data[position] == _GIF_EXTENSION:
        position = _after_sub_blocks(data, position + 2)
    return position if data[position] == _GIF_FRAME else None


def _colour_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_sub_blocks(data: bytes, position: int) -> int:
    """Walk over sub-blocks, each behind a byte with its length, to behind the empty one that ends them."""
    while length := data[position]:
        position += 1 + length
    return position + 1


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Return the size in the header of a WebP file (RFC 9649, 2.5 to 2.7)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits >> 14 & _WEBP_SIDE), 1 + (bits & _WEBP_SIDE)
    width, height = _TWO_SHORTS(data, 26)
    return (height & _WEBP_SIDE, width & _WEBP_SIDE) if kind == b"VP8 " else None
