"""Decode, crop, resize and flip a batch of stored images: compiled by numba, and cached on disk.

The resampler is torchvision's antialiased one: bilinear, a triangle as wide as a step of the output, or one pixel where the
image is enlarged; or bicubic, Keys' kernel with a = -0.5 (1981, doi:10.1109/TASSP.1981.1163711), twice as wide. It is
computed here in float32 and rounded once, where torchvision rounds its integers twice; the two differ by a sixth of a grey
level on average, and by one at most; but for bicubic where it overshoots black or white, which torchvision clips after each
of its two passes. A box may begin between two pixels, so that the resize
and the central crop of evaluation are one resampling.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding
from numba import njit, prange, types
from numba.np.ufunc.parallel import get_thread_id

from rlpheads.loaders.sources.beton import JPG

_SYMBOL = "rlpheads_ffcv_imdecode"
_COMPILED: dict[str, Any] = {"cache": True, "fastmath": True, "nogil": True, "error_model": "numpy"}

BOX = np.dtype(
    [
        ("top", "<f8"),
        ("left", "<f8"),
        ("height", "<f8"),
        ("width", "<f8"),
        ("first_row", "<i8"),
        ("end_row", "<i8"),
        ("first_column", "<i8"),
        ("end_column", "<i8"),
        ("cubic", "?"),
        ("flip", "?"),
        ("darken", "?"),
        ("skip", "?"),
    ],
    align=True,
)
"""What is cut out of an image, in pixels, which of its rows and columns may be read, whether bicubic, and what else is done to
it: mirrored, made a tenth darker, or left alone, its row black."""


def _find_library() -> Path:
    """Return FFCV's compiled library. It is found without FFCV's package, whose import takes seconds.

    Raises:
        ImportError: If FFCV is not installed.
    """
    found = importlib.util.find_spec("ffcv")
    for folder in (found.submodule_search_locations or []) if found else []:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            if (path := Path(folder) / f"_libffcv{suffix}").is_file():
                return path
    raise ImportError("FFCV's compiled library is not installed")


imdecode = ctypes.CDLL(str(_find_library())).imdecode
"""FFCV's JPEG decoder (libjpeg-turbo's, with its fast inverse transform); other than 0: the image is not whole.

Arguments: JPEG bytes and their number, height and width, pixels, height and width to write, offsets, scale, crop, flip."""
imdecode.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p]
imdecode.argtypes += [ctypes.c_uint32] * 6 + [ctypes.c_bool] * 2

# By name, not by address: code that holds an address cannot be kept on disk.
binding.add_symbol(_SYMBOL, ctypes.cast(imdecode, ctypes.c_void_p).value)
_imdecode = types.ExternalFunction(
    _SYMBOL,
    types.int32(
        *(types.voidptr, types.uint64, types.uint32, types.uint32, types.voidptr),
        *(*[types.uint32] * 6, types.boolean, types.boolean),
    ),
)


@njit(**_COMPILED)
def _cubic(distance):  # type: ignore[no-untyped-def]
    """Keys' cubic convolution kernel with a = -0.5, as Pillow's and torch's antialiased one, at a distance in steps."""
    if distance < 1.0:
        return (1.5 * distance - 2.5) * distance * distance + 1.0
    if distance < 2.0:
        return ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return 0.0


@njit(**_COMPILED)
def filter_weights(cubic, start, length, first, end, starts_S, counts_S, weights_ST):  # type: ignore[no-untyped-def]
    """Fill in which pixels of a line make each of S outputs, and with what weight.

    Args:
        cubic: Bicubic, or bilinear.
        start: Where the box begins, in pixels.
        length: How long it is.
        first: First pixel that may be read.
        end: Pixel behind the last one.
        starts_S: Receives the first pixel of each output.
        counts_S: Receives the number of pixels.
        weights_ST: Receives float32 weights that add up to 1.
    """
    step = length / len(starts_S)
    scale = max(step, 1.0)
    support = 2.0 * scale if cubic else scale
    for place in range(len(starts_S)):
        centre = start + (place + 0.5) * step
        low = max(int(np.floor(centre - support + 0.5)), first)
        high = min(int(np.floor(centre + support + 0.5)), end)
        total = np.float32(0)
        for tap in range(high - low):
            distance = abs(low + tap + 0.5 - centre) / scale
            weight = np.float32(_cubic(distance) if cubic else max(0.0, 1.0 - distance))
            weights_ST[place, tap] = weight
            total += weight
        for tap in range(high - low):
            weights_ST[place, tap] /= total
        starts_S[place] = low
        counts_S[place] = high - low


@njit(**_COMPILED)
def _blend_rows(pixels_HL, first, count, weights, line_L):  # type: ignore[no-untyped-def]
    """Weighted sum of rows, and a half for the rounding that follows; two at a time, for the memory's sake."""
    row, weight = pixels_HL[first], weights[0]
    for place in range(len(line_L)):
        line_L[place] = np.float32(0.5) + weight * np.float32(row[place])
    tap = 1
    while tap + 1 < count:
        row, below, weight, weight_below = (
            pixels_HL[first + tap],
            pixels_HL[first + tap + 1],
            weights[tap],
            weights[tap + 1],
        )
        for place in range(len(line_L)):
            line_L[place] += weight * np.float32(row[place]) + weight_below * np.float32(below[place])
        tap += 2
    if tap < count:
        row, weight = pixels_HL[first + tap], weights[tap]
        for place in range(len(line_L)):
            line_L[place] += weight * np.float32(row[place])


@njit(**_COMPILED)
def _blend_columns(line_L, starts_S, counts_S, weights_ST, out_S4):  # type: ignore[no-untyped-def]
    """Weighted sums of a line's pixels. Four lanes, the fourth idle, so that each tap is one vector instruction."""
    one, three = (
        np.uint64(1),
        np.uint64(3),
    )  # unsigned: a negative place would count from the end, at the cost of a test
    for place in range(len(starts_S)):
        red = green = blue = idle = np.float32(0)
        at = three * np.uint64(starts_S[place])
        for tap in range(counts_S[place]):
            weight = weights_ST[place, tap]
            red += weight * line_L[at]
            green += weight * line_L[at + one]
            blue += weight * line_L[at + one + one]
            idle += weight * line_L[at + three]
            at += three
        out_S4[place, 0] = red
        out_S4[place, 1] = green
        out_S4[place, 2] = blue
        out_S4[place, 3] = idle


@njit(**_COMPILED)
def _as_byte(level):  # type: ignore[no-untyped-def]
    """Cut off what bicubic overshoots, and round down."""
    return np.uint8(min(max(level, np.float32(0)), np.float32(255)))


@njit(**_COMPILED)
def resize_box(pixels_HW3, box, out_3SS):  # type: ignore[no-untyped-def]
    """Resample a box of an image to a square.

    Args:
        pixels_HW3: uint8 image.
        box: A `BOX`.
        out_3SS: Receives uint8, red, green, blue.
    """
    side = out_3SS.shape[1]
    first_column, num_columns = box.first_column, box.end_column - box.first_column
    pixels_HL = pixels_HW3.reshape(len(pixels_HW3), -1)[:, 3 * first_column : 3 * box.end_column]
    taps = int((4 if box.cubic else 2) * max(box.height, box.width, side) / side) + 3
    row_starts, column_starts = np.empty(side, np.int64), np.empty(side, np.int64)
    row_counts, column_counts = np.empty(side, np.int64), np.empty(side, np.int64)
    row_weights, column_weights = np.empty((side, taps), np.float32), np.empty((side, taps), np.float32)
    filter_weights(box.cubic, box.top, box.height, box.first_row, box.end_row, row_starts, row_counts, row_weights)
    left = box.left - first_column
    filter_weights(box.cubic, left, box.width, 0, num_columns, column_starts, column_counts, column_weights)
    line = np.zeros(3 * num_columns + 1, np.float32)  # one more, for the idle lane of the last pixel
    out_S4 = np.empty((side, 4), np.float32)
    for row in range(side):
        _blend_rows(pixels_HL, row_starts[row], row_counts[row], row_weights[row], line[: 3 * num_columns])
        _blend_columns(line, column_starts, column_counts, column_weights, out_S4)
        for place in range(side):
            target = side - 1 - place if box.flip else place
            out_3SS[0, row, target] = _as_byte(out_S4[place, 0])
            out_3SS[1, row, target] = _as_byte(out_S4[place, 1])
            out_3SS[2, row, target] = _as_byte(out_S4[place, 2])


@njit(**_COMPILED)
def _header_has_size(data, height, width):  # type: ignore[no-untyped-def]
    """Whether a JPEG's frame header has this size.

    FFCV's decoder takes another one without complaint, and leaves what it does not fill as the image before left it.
    """
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1  # a fill byte
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            rows = np.int64(data[position + 5]) * 256 + data[position + 6]
            columns = np.int64(data[position + 7]) * 256 + data[position + 8]
            return rows == height and columns == width
        else:
            position += 2 + np.int64(data[position + 2]) * 256 + data[position + 3]
    return False


@njit(**_COMPILED)
def _decode_one(data, image, box, scratch, out_3SS):  # type: ignore[no-untyped-def]
    """Turn one stored image into its square; return 0 where all is well, as FFCV's decoder does."""
    height, width = np.uint32(image.height), np.uint32(image.width)
    pixels = scratch[: 3 * np.int64(height) * np.int64(width)]
    if image.mode == JPG:
        if not _header_has_size(data, height, width):
            return np.int32(-1)
        zero, one = np.uint32(0), np.uint32(1)
        where = (zero, zero, one, one, False, False)
        code = _imdecode(data.ctypes, np.uint64(len(data)), height, width, pixels.ctypes, height, width, *where)
        if code != 0:
            return code
    elif box.darken:
        pixels[:] = data
    else:
        resize_box(data.reshape(height, width, 3), box, out_3SS)
        return np.int32(0)
    if box.darken:
        for place in range(len(pixels)):
            pixels[place] -= pixels[place] // np.uint8(10)
    resize_box(pixels.reshape(height, width, 3), box, out_3SS)
    return np.int32(0)


@njit(parallel=True, **_COMPILED)
def decode_rows(rows, memory, images, storage):  # type: ignore[no-untyped-def]
    """Decode a batch on numba's threads; FFCV calls this as the code of its decoder.

    Args:
        rows: uint64 (B,), places of the samples in the file.
        memory: uint8 (B, 3, S, S), the squares; `BOX` (B,); uint8 (threads, bytes of the largest image); int32 (B,), which
            receives the decoder's return codes.
        images: `IMAGE` (N,), all samples of the file.
        storage: The file's bytes; where in it each image lies, ascending; how many bytes it takes.

    Returns:
        The squares and the codes.
    """
    out_B3SS, boxes_B, scratch_TP, codes_B = memory
    file, places_N, sizes_N = storage
    for row in prange(len(rows)):
        image, box = images[rows[row]], boxes_B[row]
        if box.skip:
            out_B3SS[row] = 0
            codes_B[row] = 0
        else:
            size = sizes_N[np.searchsorted(places_N, image.data_ptr)]
            data = file[image.data_ptr : image.data_ptr + size]
            codes_B[row] = _decode_one(data, image, box, scratch_TP[get_thread_id()], out_B3SS[row])
    return out_B3SS, codes_B
