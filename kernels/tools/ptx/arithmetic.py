"""Arithmetic, comparison, logic, shifts and conversions of registers (PTX ISA, 9.7.1 to 9.7.9).

A fused multiply-add rounds a float64 sum, which is off by one bit in rare ties; ex2.approx and div.full are computed exactly,
where the ISA allows 2 ulp.
"""

from collections.abc import Callable
from functools import reduce

import numpy as np

from rlpheads.kernels.tools.ptx.formats import (
    NAN,
    TYPES,
    Array,
    as_bits,
    flush,
    from_bf16,
    packed,
    to_bf16,
    to_f16,
    to_tf32,
)
from rlpheads.kernels.tools.ptx.step import Step


def _fused(a: Array, b: Array, c: Array) -> Array:
    return (a.astype(np.float64) * b + c).astype(a.dtype) if a.dtype.kind == "f" else a * b + c


def _quotient(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return a / b
    a, b = a.astype(np.int64), b.astype(np.int64)
    quotient = np.abs(a) // np.maximum(np.abs(b), 1)
    return np.where((a < 0) != (b < 0), -quotient, quotient)


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "mad": _fused, "fma": _fused, "neg": np.negative, "abs": np.abs,
    "div": _quotient, "rem": lambda a, b: a.astype(np.int64) - _quotient(a, b) * b.astype(np.int64), "ex2": np.exp2,
    "max": lambda *values: reduce(np.fmax, values), "min": lambda *values: reduce(np.fmin, values),
}  # fmt: skip
"""fmax and fmin: NaN only where all are (9.7.3 "max")."""
ORDERS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
LOGIC: dict[str, Callable[..., Array]] = {
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
}  # fmt: skip
TO_INTEGRAL = {"rpi": np.ceil, "rmi": np.floor, "rzi": np.trunc, "rni": np.rint}
NARROW = {"bf16": to_bf16, "f16": to_f16, "tf32": to_tf32}


def compute(step: Step) -> None:
    """One type (9.7.1 to 9.7.4) but for `.wide` and `.f32.bf16`, whose first operands are narrower (9.7.5)."""
    target, *sources = step.operands
    kind, kinds = step.kind, [step.kind] * len(sources)
    if "wide" in step.modifiers:
        kind = f"{kind[0]}{2 * int(kind[1:])}"
        kinds[2:] = [kind] * len(kinds[2:])
    elif step.modifiers[-2:] in (("f32", "bf16"), ("f32", "f16")):
        kind, kinds[1:] = "f32", ["f32"] * len(kinds[1:])
    number = np.dtype(np.float32) if kind == "f32x2" else TYPES[kind]  # pairs are twice as many numbers
    values = [
        _numbers(step.read(source, kind), kind).astype(number, copy=False)
        for source, kind in zip(sources, kinds, strict=True)
    ]
    if "ftz" in step.modifiers:
        values = list(map(flush, values))
    result = FUNCTIONS[step.name](*values).astype(number)
    if "ftz" in step.modifiers:
        result = flush(result)
    if number == np.float32:  # every NaN has the bits 0x7fffffff (9.7.3)
        result = np.where(np.isnan(result), NAN, result)
    step.write(target, result.view("u8") if kind == "f32x2" else result)


def _numbers(raw: Array, kind: str) -> Array:
    if kind == "f32x2":
        return raw.view(np.float32)
    return from_bf16(raw) if kind == "bf16" else raw


def convert_type(step: Step) -> None:
    """cvt: .rn to nearest even, .rna ties away, .rz toward zero, .rpi up and .rmi down to an integer (9.7.9.21)."""
    *_, into, source = step.modifiers
    cuts, target = "rz" in step.modifiers, step.operands[0]
    first, *rest = (step.read(operand, source) for operand in step.operands[1:])
    if rest:  # into .x2, of which the first operand becomes the upper half
        narrow = NARROW[into.removesuffix("x2")]
        result = packed(narrow(rest[0], cuts), narrow(first, cuts))
    elif into in ("bf16", "tf32"):
        result = NARROW[into](first, cuts)
    else:
        result = flush(first) if "ftz" in step.modifiers else _numbers(first, source)
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
        holds = LOGIC[step.modifiers[1]](holds, step.read(other, "pred"))
    step.write(target, holds)


def select_values(step: Step) -> None:
    """selp: a where the predicate holds, else b (9.7.6)."""
    target, a, b, predicate = step.operands
    step.write(target, np.where(step.read(predicate, "pred"), step.read(a), step.read(b)))


def logic(step: Step) -> None:
    """and, or, xor, not of bits or predicates (9.7.8)."""
    step.write(step.operands[0], LOGIC[step.name](*map(step.read, step.operands[1:])))


def shift(step: Step) -> None:
    """Of shl and shr amounts beyond the width shift everything out, of signed types all but the sign (9.7.8)."""
    target, source, amount = step.operands
    values, by = step.read(source), step.read(amount, "u32")
    width = 8 * values.itemsize
    inside = np.minimum(by, width - 1).astype(values.dtype)
    result = values << inside if step.name == "shl" else values >> inside
    step.write(target, np.where(by >= width, 0, result).astype(values.dtype) if values.dtype.kind == "u" else result)


def extract(step: Step) -> None:
    """bfe: a field of bits, extended by its own sign for signed types (9.7.1)."""
    target, source, first, length = step.operands
    bits = as_bits(step.read(source, step.kind.replace("s", "u")))
    left = bits.dtype.type(8 * bits.itemsize - step.one(length))
    field = (bits >> bits.dtype.type(step.one(first)) << left).view(TYPES[step.kind])
    step.write(target, field >> field.dtype.type(left))


INSTRUCTIONS = {
    **dict.fromkeys(FUNCTIONS, compute), **dict.fromkeys(LOGIC, logic), "cvt": convert_type, "setp": set_predicate,
    "selp": select_values, "shl": shift, "shr": shift, "bfe": extract,
}  # fmt: skip
