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
    """One type (9.7.1 to 9.7.4) but for f32x2, pairs of float32, and `.f32.bf16`, whose first is narrower (9.7.5)."""
    kind, function, sources = step.kind, FUNCTIONS[step.name], step.operands[1:]
    if kind == "f32x2":
        pairs = [step.column(source).view(np.float32).reshape(-1, 2).T for source in sources]
        step.write(0, packed(*(_canonical(function(*half).astype(np.float32)) for half in zip(*pairs, strict=True))))
        return
    values = [step.read(source) for source in sources[: 2 if "wide" in step.modifiers else None]]
    if step.modifiers[-2:] in (("f32", "bf16"), ("f32", "f16")):
        first, kind = values[0], "f32"
        widened = from_bf16(first) if step.kind == "bf16" else first.astype(np.float32)
        values = [widened, *(step.read(source, kind) for source in sources[1:])]
    if "wide" in step.modifiers:
        kind = f"{kind[0]}{2 * int(kind[1:])}"
        values = [value.astype(TYPES[kind]) for value in values] + [step.read(part, kind) for part in sources[2:]]
    flushes = "ftz" in step.modifiers
    result = function(*(map(flush, values) if flushes else values))
    result = (flush(result) if flushes else result).astype(TYPES[kind])
    step.write(0, _canonical(result) if kind == "f32" else result)


def _canonical(values: Array) -> Array:
    """What arithmetic returns: every NaN of float32 has the bits 0x7fffffff (9.7.3)."""
    return np.where(np.isnan(values), NAN, values)


def convert_type(step: Step) -> None:
    """cvt: .rn to nearest even, .rna ties away, .rz toward zero, .rpi up and .rmi down to an integer (9.7.9.21)."""
    *_, into, source = step.modifiers
    cuts = "rz" in step.modifiers
    first, *rest = (step.read(operand, source) for operand in step.operands[1:])
    if rest:  # into .x2, of which the first operand becomes the upper half
        narrow = NARROW[into.removesuffix("x2")]
        result = packed(narrow(rest[0], cuts), narrow(first, cuts))
    elif into in ("bf16", "tf32"):
        result = NARROW[into](first, cuts)
    elif source == "bf16":
        result = from_bf16(first)
    else:
        result = flush(first) if "ftz" in step.modifiers else first
        for modifier in TO_INTEGRAL.keys() & set(step.modifiers):
            result = TO_INTEGRAL[modifier](result)
        result = result.astype(TYPES[into])
    step.write(0, result)


def set_predicate(step: Step) -> None:
    """setp.order: false where either is NaN, but true for `…u`; `num` and `nan` ask only that (9.7.6 "setp")."""
    order, is_float = step.modifiers[0], step.kind[0] == "f"
    a, b = step.read(1), step.read(2)
    disordered = np.isnan(a) | np.isnan(b) if is_float else np.array(False)
    if order in ("num", "nan"):
        holds = disordered if order == "nan" else ~disordered
    elif is_float and order.endswith("u"):
        holds = ORDERS[order[:-1]](a, b) | disordered
    else:
        holds = ORDERS[order](a, b) & ~disordered
    if len(step.operands) > 3:
        holds = LOGIC[step.modifiers[1]](holds, step.read(3, "pred"))
    step.write(0, holds)


def select_values(step: Step) -> None:
    """selp: a where the predicate holds, else b (9.7.6)."""
    step.write(0, np.where(step.read(3, "pred"), step.read(1), step.read(2)))


def logic(step: Step) -> None:
    """and, or, xor, not of bits or predicates (9.7.8)."""
    step.write(0, LOGIC[step.name](*map(step.read, step.operands[1:])))


def shift(step: Step) -> None:
    """Of shl and shr amounts beyond the width shift everything out, of signed types all but the sign (9.7.8)."""
    values, by = step.read(1), step.read(2, "u32")
    width = 8 * values.dtype.itemsize
    inside = np.minimum(by, width - 1).astype(values.dtype)
    result = values << inside if step.name == "shl" else values >> inside
    step.write(0, np.where(by >= width, 0, result).astype(values.dtype) if values.dtype.kind == "u" else result)


def extract(step: Step) -> None:
    """bfe: a field of bits, extended by its own sign for signed types (9.7.1)."""
    bits = as_bits(step.read(1, step.kind.replace("s", "u")))
    left = bits.dtype.type(8 * bits.dtype.itemsize - step.one(3))
    field = (bits >> bits.dtype.type(step.one(2)) << left).view(TYPES[step.kind])
    step.write(0, field >> field.dtype.type(left))


INSTRUCTIONS = {
    **dict.fromkeys(FUNCTIONS, compute), **dict.fromkeys(LOGIC, logic), "cvt": convert_type, "setp": set_predicate,
    "selp": select_values, "shl": shift, "shr": shift, "bfe": extract,
}  # fmt: skip
