"""Types of PTX as numpy's, and the roundings between them (PTX ISA, 5.2 "Types" and 9.7.9 "cvt")."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

NAN = np.array(0x7FFFFFFF, np.uint32).view(np.float32)
_CODES = {"f16": "f2", "f32": "f4", "f64": "f8", "pred": "?", "bf16": "u2", "tf32": "u4"}
_CODES |= {"f16x2": "u4", "bf16x2": "u4", "f32x2": "u8"}
_CODES |= {f"{a}{8 * size}": f"{b}{size}" for a, b in ("bu", "uu", "si") for size in (1, 2, 4, 8)}
TYPES = {name: np.dtype(code) for name, code in _CODES.items()}
"""The numpy type that holds a PTX type; bits alone for bf16, tf32 and packed pairs."""


def as_bits(values: Array) -> Array:
    """The same bits as unsigned integers, where they are floats."""
    return values.view(f"u{values.dtype.itemsize}") if values.dtype.kind == "f" else values


def from_bf16(bits: Array) -> Array:
    """bf16 as float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values: Array, toward_zero: bool) -> Array:
    """float32 rounded to the nearest bf16, ties to even, or cut; every NaN becomes 0x7fff."""
    bits = values.astype(np.float32).view(np.uint32)
    added = np.uint32(0) if toward_zero else (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)
    return np.where(np.isnan(values), 0x7FFF, (bits + added) >> np.uint32(16)).astype(np.uint16)


def to_f16(values: Array, toward_zero: bool) -> Array:
    """float32 rounded to the nearest fp16, ties to even, or cut."""
    nearest = values.astype(np.float16)
    beyond = toward_zero & (np.abs(nearest.astype(np.float32)) > np.abs(values))
    return np.where(beyond, np.nextafter(nearest, np.float16(0)), nearest)


def to_tf32(values: Array, toward_zero: bool) -> Array:
    """cvt.rna: float32 rounded to the nearest 10-bit significand, ties away from zero, or cut."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0 if toward_zero else 0x1000)) & np.uint32(0xFFFFE000)
    return np.where((bits & np.uint32(0x7F800000)) == 0x7F800000, bits, rounded)


ROUNDINGS = {"bf16": to_bf16, "f16": to_f16, "tf32": to_tf32}


def flush(values: Array) -> Array:
    """ftz: subnormal float32 become zeros of the same sign."""
    tiny = np.abs(values) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), values), values)


def numbers(raw: Array, kind: str) -> Array:
    """What one can compute with: of bf16 float32, of pairs of float32 twice as many."""
    if kind == "f32x2":
        return raw.view(np.float32)
    return from_bf16(raw) if kind == "bf16" else raw


def elements(raw: Array, kind: str) -> Array:
    """Bytes of a matrix, the last axis along a row, as the float64 numbers that a matrix product multiplies.

    Of tf32 the lower 13 bits are ignored (9.7.15 "mma").
    """
    if kind == "tf32":
        return (raw.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return (from_bf16(raw.view(np.uint16)) if kind == "bf16" else raw.view(np.float16)).astype(np.float64)


def packed(low: Array, high: Array) -> Array:
    """Two arrays of one type as one of twice its bits."""
    pair = np.stack(np.broadcast_arrays(as_bits(low), as_bits(high)), -1)
    return np.ascontiguousarray(pair).view(f"u{2 * pair.dtype.itemsize}")[..., 0]
