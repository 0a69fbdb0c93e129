"""Integer and floating-point arithmetic, and conversions (PTX ISA, 9.7.1 to 9.7.4, 9.7.9 "cvt").

A fused multiply-add rounds a float64 sum, which is off by one bit in rare ties; ex2.approx and div.full are computed exactly,
where the ISA allows 2 ulp.
"""

from collections.abc import Callable

import numpy as np

from rlpheads.kernels.tools.ptx.block import Block
from rlpheads.kernels.tools.ptx.formats import (
    Array,
    canonical,
    flush,
    from_bf16,
    halves,
    numpy_type,
    packed,
    to_bf16,
    to_f16,
    to_tf32,
)
from rlpheads.kernels.tools.ptx.program import Instruction


def compute(block: Block, instruction: Instruction, active: Array) -> None:
    """Compute a op b (op c), in one type; `.wide` gives integers of twice the bits, `.lo` the lower half."""
    kind = "f32" if _is_mixed(instruction) else instruction.kind
    if kind == "f32x2":
        _packed(block, instruction, active)
        return
    values = _operands(block, instruction, kind, active)
    if "wide" in instruction.modifiers:
        kind = f"{kind[0]}{2 * int(kind[1:])}"
        values = [value.astype(numpy_type(kind)) for value in values[:2]]
        values += [block.read(operand, kind, active) for operand in instruction.operands[3:]]
    result = FUNCTIONS[instruction.name](*values)
    result = flush(result) if "ftz" in instruction.modifiers else result
    result = result.astype(numpy_type(kind))
    block.write(instruction.operands[0], canonical(result) if kind == "f32" else result, active)


def _is_mixed(instruction: Instruction) -> bool:
    """add.rn.f32.bf16 and the like: the first operand is narrower (9.7.5 "Mixed Precision Floating-Point")."""
    return instruction.modifiers[-2:] in (("f32", "bf16"), ("f32", "f16"))


def _operands(block: Block, instruction: Instruction, kind: str, active: Array) -> list[Array]:
    sources = instruction.operands[1:]
    if "wide" in instruction.modifiers:
        sources = sources[:2]
    if _is_mixed(instruction):
        first = block.read(sources[0], instruction.kind, active)
        widened = from_bf16(first) if instruction.kind == "bf16" else first.astype(np.float32)
        return [widened, *(block.read(source, kind, active) for source in sources[1:])]
    values = [block.read(source, kind, active) for source in sources]
    return [flush(value) for value in values] if "ftz" in instruction.modifiers else values


def _packed(block: Block, instruction: Instruction, active: Array) -> None:
    """Two float32 side by side (9.7.3, .f32x2)."""
    pairs = [halves(block.column(x, "b64", active)) for x in instruction.operands[1:]]
    low, high = (canonical(FUNCTIONS[instruction.name](*half).astype(np.float32)) for half in zip(*pairs, strict=True))
    block.write(instruction.operands[0], packed(low, high), active)


def _fused(a: Array, b: Array, c: Array) -> Array:
    if a.dtype.kind == "f":
        return (a.astype(np.float64) * b + c).astype(a.dtype)
    return a * b + c


def _quotient(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return a / b
    wide_a, wide_b = a.astype(np.int64), b.astype(np.int64)
    quotient = np.abs(wide_a) // np.maximum(np.abs(wide_b), 1)
    return np.where((wide_a < 0) != (wide_b < 0), -quotient, quotient)


def _remainder(a: Array, b: Array) -> Array:
    return a.astype(np.int64) - _quotient(a, b) * b.astype(np.int64)


def _largest(*values: Array) -> Array:
    """NaN only where all are (9.7.3 "max"); three operands on sm_100."""
    result = values[0]
    for value in values[1:]:
        result = np.fmax(result, value)
    return result


def _smallest(*values: Array) -> Array:
    result = values[0]
    for value in values[1:]:
        result = np.fmin(result, value)
    return result


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "mad": _fused, "fma": _fused, "div": _quotient,
    "rem": _remainder, "max": _largest, "min": _smallest, "neg": np.negative, "abs": np.abs, "ex2": np.exp2,
}  # fmt: skip


def convert_type(block: Block, instruction: Instruction, active: Array) -> None:
    """Change the type ("cvt"): .rn to nearest even, .rna ties away, .rz toward zero, .rpi up and .rmi down to an integer."""
    *_, into, source = instruction.modifiers
    cut = "rz" in instruction.modifiers
    first, *rest = (block.read(operand, source, active) for operand in instruction.operands[1:])
    if into in ("bf16x2", "f16x2"):  # the first operand becomes the upper half
        narrow = to_bf16 if into == "bf16x2" else to_f16
        result = packed(narrow(rest[0], cut), narrow(first, cut))
    elif into == "bf16":
        result = to_bf16(first, cut)
    elif into == "tf32":
        result = to_tf32(first.view(np.uint32), cut)
    elif source == "bf16":
        result = from_bf16(first)
    else:
        result = _to_integral(first, instruction.modifiers).astype(numpy_type(into))
    block.write(instruction.operands[0], result, active)


def _to_integral(values: Array, modifiers: tuple[str, ...]) -> Array:
    values = flush(values) if "ftz" in modifiers else values
    for modifier, function in (("rpi", np.ceil), ("rmi", np.floor), ("rzi", np.trunc), ("rni", np.rint)):
        if modifier in modifiers:
            return function(values)
    return values


INSTRUCTIONS = dict.fromkeys(FUNCTIONS, compute) | {"cvt": convert_type}
