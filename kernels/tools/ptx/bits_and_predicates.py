"""Comparison, selection, logic and shifts (PTX ISA, 9.7.6 to 9.7.8; bfe in 9.7.1)."""

import numpy as np

from rlpheads.kernels.tools.ptx.block import Block
from rlpheads.kernels.tools.ptx.formats import Array, unsigned
from rlpheads.kernels.tools.ptx.program import Instruction

ORDERS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


def set_predicate(block: Block, instruction: Instruction, active: Array) -> None:
    """setp.order: false where either is NaN, but true for `…u`; `num` and `nan` ask only that (9.7.6 "setp")."""
    order, kind = instruction.modifiers[0], instruction.kind
    a, b = (block.read(operand, kind, active) for operand in instruction.operands[1:3])
    disordered = np.isnan(a) | np.isnan(b) if kind[0] == "f" else np.array(False)
    if order in ("num", "nan"):
        holds = disordered if order == "nan" else ~disordered
    elif kind[0] == "f" and order.endswith("u"):
        holds = ORDERS[order[:-1]](a, b) | disordered
    else:
        holds = ORDERS[{"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(order, order)](a, b) & ~disordered
    if len(instruction.operands) > 3:
        holds = LOGIC[instruction.modifiers[1]](holds, block.read(instruction.operands[3], "pred", active))
    block.write(instruction.operands[0], holds, active)


def select_values(block: Block, instruction: Instruction, active: Array) -> None:
    """selp: a where the predicate holds, else b (9.7.6)."""
    target, a, b, chooser = instruction.operands
    kind = instruction.kind
    values = block.read(a, kind, active), block.read(b, kind, active)
    block.write(target, np.where(block.read(chooser, "pred", active), *values), active)


def logic(block: Block, instruction: Instruction, active: Array) -> None:
    """and, or, xor, not of bits or predicates (9.7.8)."""
    values = [block.read(operand, instruction.kind, active) for operand in instruction.operands[1:]]
    result = ~values[0] if instruction.name == "not" else LOGIC[instruction.name](*values)
    block.write(instruction.operands[0], result, active)


def shift(block: Block, instruction: Instruction, active: Array) -> None:
    """Of shl and shr amounts beyond the width shift everything out, of signed types all but the sign (9.7.8)."""
    target, value, amount = instruction.operands
    values = block.read(value, instruction.kind, active)
    by = block.read(amount, "u32", active)
    width = 8 * values.dtype.itemsize
    inside = np.minimum(by, width - 1).astype(values.dtype)
    result = values << inside if instruction.name == "shl" else values >> inside
    if values.dtype.kind == "u":
        result = np.where(by >= width, 0, result).astype(values.dtype)
    block.write(target, result, active)


def extract(block: Block, instruction: Instruction, active: Array) -> None:
    """bfe: a field of bits, extended by its own sign for signed types (9.7.1)."""
    target, value, position, length = instruction.operands
    size = int(instruction.kind[1:]) // 8
    values = block.read(value, f"u{8 * size}", active)
    first, num = block.one(position, "u32", active), block.one(length, "u32", active)
    left = 8 * size - num
    field = (values >> values.dtype.type(first)) << values.dtype.type(left)
    field = field.view(f"i{size}") if instruction.kind[0] == "s" else field.view(unsigned(size))
    block.write(target, field >> field.dtype.type(left), active)


INSTRUCTIONS = {
    "setp": set_predicate, "selp": select_values, "and": logic, "or": logic, "xor": logic, "not": logic, "shl": shift,
    "shr": shift, "bfe": extract,
}  # fmt: skip
