"""What decoding an image may cost, judged from the bytes of its file before any memory is taken for its pixels."""

from __future__ import annotations

from rlpheads.loaders.sources.image_headers import claimed_size, count_scans

MOST_PIXELS = 178_956_970
"""Larger images are refused: half a gigabyte once decoded. Pillow's own limit, twice its `Image.MAX_IMAGE_PIXELS`."""

MOST_SCANS = 100
"""Scans of a JPEG. Encoders write about ten in a progressive one; each passes over every pixel anew."""

MOST_SCANNED_PIXELS = 12 * MOST_PIXELS
"""Scans times pixels of a JPEG: some ten seconds. The largest image that is allowed may be progressive as usual."""


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
