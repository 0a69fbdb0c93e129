"""Moves, loads, stores, and exchange between the threads of a warp (PTX ISA, 9.7.9; matrices in 9.7.15.5)."""

import numpy as np

from rlpheads.kernels.tools.ptx.checked_memory import KernelError
from rlpheads.kernels.tools.ptx.formats import TYPES, Array
from rlpheads.kernels.tools.ptx.program import Address, Operand, parts
from rlpheads.kernels.tools.ptx.step import Step


def move(step: Step) -> None:
    """mov: copy, or take apart and put together vectors of registers, lowest bits first (9.7.9 "mov").

    Compilers put unset parts where nobody will look: of vectors, unset bits move along. Triton's places some moves before the
    wait of the asynchronous operation that sets their source, where the ISA leaves a read undefined; these are done with it.
    """
    target, source = step.operands
    for part in reversed(parts(source)):
        if isinstance(part, str) and part in step.block.owed:
            step.write_later(target, step.block.owed[part], lambda: move(step))
            return
    if not isinstance(target, tuple) and not isinstance(source, tuple):
        step.write(target, step.read(source))
        return
    size = TYPES[step.kind].itemsize
    pairs = [step.read_bits(part, f"b{8 * size // len(parts(source))}") for part in parts(source)]
    unset = [np.zeros_like(values) if holes is None else holes.astype(values.dtype) for values, holes in pairs]
    columns, left = (
        np.stack(bits, 1).view(f"u{size // len(parts(target))}").T for bits in ([values for values, _ in pairs], unset)
    )
    for part, values, holes in zip(parts(target), columns, left, strict=True):
        step.write(part, values, holes if holes.any() else None)


def load_values(step: Step) -> None:
    """ld: from parameters, shared or global memory (9.7.9 "ld")."""
    target, source = step.operands
    kind, number, space = TYPES[step.kind], len(parts(target)), step.modifiers[0]
    if space == "param":
        assert isinstance(source, Address), step.instruction.text
        step.write(target, step.read(source.base))
    elif space.startswith("shared"):
        cells = step.shared_cells(source, kind.itemsize * number)
        step.block.launch.counts.shared(cells, step.threads)
        step.write_columns(target, step.block.shared.read(cells, step.threads).view(kind))
    else:
        starts = step.addresses(source, "u64", kind.itemsize * number)[:, None]
        values = step.block.launch.memory.load(starts + kind.itemsize * np.arange(number), kind.itemsize)
        step.write_columns(target, values.view(kind))


def store_values(step: Step) -> None:
    """st: to shared or global memory (9.7.9 "st")."""
    target, source = step.operands
    values = step.columns(source)
    size, number = values.itemsize, values.shape[1]
    if step.modifiers[0].startswith("shared"):
        cells = step.shared_cells(target, size * number)
        step.block.launch.counts.shared(cells, step.threads)
        step.block.shared.write(cells, step.threads, values.view(np.uint8))
    else:
        starts = step.addresses(target, "u64", size * number)[:, None]
        step.block.launch.counts.stores[size * number] += len(starts)
        step.block.launch.memory.store(starts + size * np.arange(number), values.view(f"u{size}"))


def shuffle(step: Step) -> None:
    """shfl.sync: a value of another lane: lane xor b, or lane b (9.7.9 "shfl.sync")."""
    target, value, lane, *_ = step.operands
    threads, by = step.block.threads, step.read(lane, "u32").astype(np.int64)
    source = threads ^ by if "bfly" in step.modifiers else threads - threads % 32 + by % 32
    if not step.active[source[step.active]].all():
        raise KernelError("shfl reads a lane that does not take part")
    step.write(parts(target)[0], step.read(value, "b32")[source])


def reduce_warp(step: Step) -> None:
    """redux.sync.max, .min and .add over a warp (9.7.13 "redux.sync")."""
    function = {"max": np.fmax, "min": np.fmin, "add": np.add}[step.modifiers[1]]
    step.write(step.operands[0], np.repeat(function.reduce(step.read(step.operands[1]).reshape(-1, 32), 1), 32))


def elect(step: Step) -> None:
    """elect.sync d|p: the lowest active lane of each warp (9.7.13 "elect.sync")."""
    leader = np.repeat(step.active.reshape(-1, 32).argmax(1), 32)
    lane, chosen = parts(step.operands[0])
    step.write(lane, leader.astype(np.uint32))
    step.write(chosen, step.block.threads % 32 == leader)


def _matrix_cells(step: Step, where: Operand, number: int) -> Array:
    """Matrix `number` of 8 × 8 of 16 bits: lanes 8n to 8n+7 give its rows; lane l has places 2(l mod 4), +1 of row l/4.

    With .trans rows and places change their parts.
    """
    lane = step.block.threads % 32
    rows = np.zeros(step.block.num_threads, np.int64)
    rows[step.active] = step.shared_cells(where, 16)[:, 0]
    pair, other = lane[:, None] % 4 * 2 + np.arange(2), np.repeat(lane[:, None] // 4, 2, 1)
    row, column = (pair, other) if "trans" in step.modifiers else (other, pair)
    starts = rows[(step.block.threads - lane)[:, None] + 8 * number + row] + 2 * column
    cells = (starts[step.active][:, :, None] + np.arange(2)).reshape(-1, 4)
    step.block.launch.counts.shared(cells[:, :1] // 4 * 4 + np.arange(4), step.threads)
    return cells


def load_matrix(step: Step) -> None:
    """ldmatrix.m8n8: one to four matrices from shared memory (9.7.15.5.15)."""
    target, source = step.operands
    cells = [_matrix_cells(step, source, number) for number in range(len(parts(target)))]
    values = [step.block.shared.read(matrix, step.threads).view(np.uint32) for matrix in cells]
    step.write_columns(target, np.concatenate(values, 1))


def store_matrix(step: Step) -> None:
    """stmatrix.m8n8: the reverse (9.7.15.5.16)."""
    target, source = step.operands
    for number, column in enumerate(step.columns(source, "b32").T):
        values = np.ascontiguousarray(column)[:, None].view(np.uint8)
        step.block.shared.write(_matrix_cells(step, target, number), step.threads, values)


INSTRUCTIONS = {
    "mov": move, "cvta": move, "ld": load_values, "st": store_values, "shfl": shuffle, "redux": reduce_warp, "elect": elect,
    "ldmatrix": load_matrix, "stmatrix": store_matrix,
}  # fmt: skip
