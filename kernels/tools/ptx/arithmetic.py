"""Arithmetic, comparison, logic, shifts and conversions of registers (PTX ISA, 9.7.1 to 9.7.9).

A fused multiply-add rounds a float64 sum, which is off by one bit in rare ties; ex2.approx, sqrt.approx and div.full are
computed exactly, where the ISA allows 2 ulp.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import numpy as np

from rlpheads.kernels.tools.ptx.formats import NAN, ROUNDINGS, TYPES, Array, flush, numbers, packed
from rlpheads.kernels.tools.ptx.step import Step


def _fused(a: Array, b: Array, c: Array) -> Array:
    return (a.astype(np.float64) * b + c).astype(a.dtype) if a.dtype.kind == "f" else a * b + c


def _quotient(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return a / b
    a, b = a.astype(np.int64), b.astype(np.int64)
    quotient = np.abs(a) // np.maximum(np.abs(b), 1)
    return np.where((a < 0) != (b < 0), -quotient, quotient)


def _shifted(function: Callable[..., Array], values: Array, by: Array) -> Array:
    """Amounts beyond the width shift everything out, of signed types all but the sign (9.7.8)."""
    width = 8 * values.itemsize
    result = function(values, np.minimum(by, width - 1).astype(values.dtype))
    return np.where(by >= width, 0, result) if values.dtype.kind == "u" else result


def _field(values: Array, first: Array, length: Array) -> Array:
    """Bits of a number, extended by their own sign for signed types (9.7.1 "bfe")."""
    left = 8 * values.itemsize - length
    return _shifted(np.right_shift, _shifted(np.left_shift, values, left - first).astype(values.dtype), left)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "mad": _fused, "fma": _fused, "neg": np.negative, "abs": np.abs,
    "div": _quotient, "rem": lambda a, b: a.astype(np.int64) - _quotient(a, b) * b.astype(np.int64), "ex2": np.exp2,
    "sqrt": np.sqrt, "max": lambda *values: reduce(np.fmax, values), "min": lambda *values: reduce(np.fmin, values),
    "selp": lambda a, b, holds: np.where(holds, a, b),
    "shl": partial(_shifted, np.left_shift), "shr": partial(_shifted, np.right_shift), "bfe": _field,
}  # fmt: skip
"""fmax and fmin: NaN only where all are (9.7.3 "max")."""
KINDS = {"selp": ("", "", "pred"), "bfe": ("", "u32", "u32"), "shl": ("", "u32"), "shr": ("", "u32")}
"""Types of operands, where not all have the instruction's."""
ORDERS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
TO_INTEGRAL = {"rpi": np.ceil, "rmi": np.floor, "rzi": np.trunc, "rni": np.rint}


def compute(step: Step) -> None:
    """One function of all operands (9.7.1 to 9.7.8); of `.wide` and `.f32.bf16` the first are narrower (9.7.5)."""
    target, *sources = step.operands
    kind, kinds = step.kind, KINDS.get(step.name, ("",) * len(sources))
    if "wide" in step.modifiers:
        kind = f"{kind[0]}{2 * int(kind[1:])}"
        kinds = ("", "", kind)[: len(sources)]
    elif step.modifiers[-2:] in (("f32", "bf16"), ("f32", "f16")):
        kind, kinds = "f32", ("", *["f32"] * len(sources[1:]))
    values = [numbers(step.read(source, k), k or step.kind) for source, k in zip(sources, kinds, strict=True)]
    if kind != step.kind:
        values = [value.astype(TYPES[kind]) for value in values]
    if "ftz" in step.modifiers:
        values = list(map(flush, values))
    result = FUNCTIONS[step.name](*values)
    if "ftz" in step.modifiers:
        result = flush(result)
    if result.dtype == np.float32 and step.name != "selp":  # every NaN has the bits 0x7fffffff (9.7.3)
        result = np.where(np.isnan(result), NAN, result)
    step.write(target, result.view("u8") if kind == "f32x2" else result.astype(TYPES[kind]))


def convert_type(step: Step) -> None:
    """cvt: .rn to nearest even, .rna ties away, .rz toward zero, .rpi up and .rmi down to an integer (9.7.9.21)."""
    *_, into, source = step.modifiers
    cuts, target = "rz" in step.modifiers, step.operands[0]
    first, *rest = (step.read(operand, source) for operand in step.operands[1:])
    if rest:  # into .x2, of which the first operand becomes the upper half
        narrow = ROUNDINGS[into.removesuffix("x2")]
        result = packed(narrow(rest[0], cuts), narrow(first, cuts))
    elif into in ("bf16", "tf32"):
        result = ROUNDINGS[into](first, cuts)
    else:
        result = flush(first) if "ftz" in step.modifiers else numbers(first, source)
        for modifier in TO_INTEGRAL.keys() & set(step.modifiers):
            result = TO_INTEGRAL[modifier](result)
        result = result.astype(TYPES[into])
    step.write(target, result)


def set_predicate(step: Step) -> None:
    """setp.order: false where either is NaN, but true for `…u`; `num` and `nan` ask only that (9.7.6 "setp")."""
    target, a, b, *others = step.operands
    order, left, right = step.modifiers[0], step.read(a), step.read(b)
    disordered = (left != left) | (right != right)  # of NaN alone
    if order in ("num", "nan"):
        holds = disordered == (order == "nan")
    elif step.kind[0] == "f" and order.endswith("u"):
        holds = ORDERS[order[:-1]](left, right) | disordered
    else:
        holds = ORDERS[order](left, right) & ~disordered
    for other in others:
        holds = FUNCTIONS[step.modifiers[1]](holds, step.read(other, "pred"))
    step.write(target, holds)


INSTRUCTIONS = {**dict.fromkeys(FUNCTIONS, compute), "cvt": convert_type, "setp": set_predicate}
