"""Moves, loads, stores, and exchange between the threads of a warp (PTX ISA, 9.7.9; matrices in 9.7.15.5)."""

import numpy as np

from rlpheads.kernels.tools.ptx.checked_memory import KernelError
from rlpheads.kernels.tools.ptx.formats import TYPES, Array
from rlpheads.kernels.tools.ptx.program import Group, Register
from rlpheads.kernels.tools.ptx.step import Step


def move(step: Step) -> None:
    """mov: copy, or take apart and put together vectors of registers, lowest bits first (9.7.9 "mov").

    Triton's compiler places some before the wait of the asynchronous operation that sets their source, where the ISA leaves
    a read undefined; these are done when the operation is.
    """
    owed = [step.block.owed.get(part.name) for part in step.parts(1) if isinstance(part, Register)]
    for queue in reversed(owed):
        if queue is not None:
            step.put_off(0, queue, lambda: move(step))
            return
    if isinstance(step.operands[1], Group):
        _put_together(step)
    elif isinstance(step.operands[0], Group):
        _take_apart(step)
    else:
        step.write(0, step.read(1))


def _put_together(step: Step) -> None:
    """A vector into one register; compilers put unset parts where nobody will look."""
    sources, target, kind = step.parts(1), step.operands[0], TYPES[step.kind]
    part = f"b{8 * kind.itemsize // len(sources)}"
    holes = tuple(step.block.is_unset(source, step.active) for source in sources)
    columns = [np.zeros(1, TYPES[part]) if hole else step.read(x, part) for x, hole in zip(sources, holes, strict=True)]
    joined = np.ascontiguousarray(np.stack(np.broadcast_arrays(*columns), -1))
    step.write(target, joined.view(kind)[..., 0])
    if any(holes) and isinstance(target, Register):
        step.block.holes[target.name] = holes


def _take_apart(step: Step) -> None:
    source, targets = step.operands[1], step.parts(0)
    name = source.name if isinstance(source, Register) else ""
    holes = step.block.holes.pop(name, (False,) * len(targets))
    whole = np.ascontiguousarray(step.column(1))
    parts = whole.view(f"u{whole.dtype.itemsize // len(targets)}").reshape(-1, len(targets)).T
    for target, values, hole in zip(targets, parts, holes, strict=True):
        if not hole:
            step.write(target, values)
    if any(holes):
        step.block.holes[name] = holes


def load_values(step: Step) -> None:
    """ld: from parameters, shared or global memory (9.7.9 "ld")."""
    kind, number, space = TYPES[step.kind], len(step.parts(0)), step.modifiers[0]
    if space == "param":
        source = step.address(1)
        assert isinstance(source.base, Register)
        if source.offset:
            raise KernelError("an offset into a parameter")
        step.write(0, np.array(step.block.launch.values[source.base.name] & 2**64 - 1, np.uint64).astype(kind))
    elif space.startswith("shared"):
        cells = step.shared_cells(1, kind.itemsize * number)
        step.block.launch.counts.shared(cells, step.threads)
        step.write_columns(0, step.block.shared.read(cells, step.threads).view(kind))
    else:
        starts = step.addresses(1, "u64", kind.itemsize * number)[:, None]
        values = step.block.launch.memory.load(starts + kind.itemsize * np.arange(number), kind.itemsize)
        step.write_columns(0, values.view(kind))


def store_values(step: Step) -> None:
    """st: to shared or global memory (9.7.9 "st")."""
    values = step.columns(1)
    size, number = values.dtype.itemsize, values.shape[1]
    if step.modifiers[0].startswith("shared"):
        cells = step.shared_cells(0, size * number)
        step.block.launch.counts.shared(cells, step.threads)
        step.block.shared.write(cells, step.threads, values.view(np.uint8))
        return
    starts = step.addresses(0, "u64", size * number)[:, None]
    step.block.launch.counts.stores[size * number] += len(starts)
    step.block.launch.memory.store(starts + size * np.arange(number), values.view(f"u{size}"))


def shuffle(step: Step) -> None:
    """shfl.sync: a value of another lane: lane xor b, or lane b (9.7.9 "shfl.sync")."""
    threads = step.block.threads
    by = step.read(2, "u32").astype(np.int64)
    source = threads ^ by if "bfly" in step.modifiers else threads - threads % 32 + by % 32
    if not step.active[source[step.active]].all():
        raise KernelError("shfl reads a lane that does not take part")
    step.write(step.parts(0)[0], step.column(1, "b32")[source])


def reduce_warp(step: Step) -> None:
    """redux.sync.max and .min of float32 over a warp (9.7.13 "redux.sync")."""
    function = np.fmax if "max" in step.modifiers else np.fmin
    step.write(0, np.repeat(function.reduce(step.column(1).reshape(-1, 32), 1), 32))


def elect(step: Step) -> None:
    """elect.sync d|p: the lowest active lane of each warp (9.7.13 "elect.sync")."""
    leader = np.repeat(step.active.reshape(-1, 32).argmax(1), 32)
    lane, chosen = step.parts(0)
    step.write(lane, leader.astype(np.uint32))
    step.write(chosen, step.block.threads % 32 == leader)


def _matrix_cells(step: Step, place: int, number: int) -> Array:
    """Matrix `number` of 8 × 8 of 16 bits: lanes 8n to 8n+7 give its rows; lane l has places 2(l mod 4), +1 of row l/4.

    With .trans rows and places change their parts.
    """
    lane = step.block.threads % 32
    rows = np.zeros(step.block.num_threads, np.int64)
    rows[step.active] = step.shared_cells(place, 16)[:, 0]
    pair, other = lane[:, None] % 4 * 2 + np.arange(2), np.repeat(lane[:, None] // 4, 2, 1)
    row, column = (pair, other) if "trans" in step.modifiers else (other, pair)
    starts = rows[(step.block.threads - lane)[:, None] + 8 * number + row] + 2 * column
    cells = (starts[step.active][:, :, None] + np.arange(2)).reshape(-1, 4)
    step.block.launch.counts.shared(cells[:, :1] // 4 * 4 + np.arange(4), step.threads)
    return cells


def load_matrix(step: Step) -> None:
    """ldmatrix.m8n8: one to four matrices from shared memory (9.7.15.5.15)."""
    cells = [_matrix_cells(step, 1, number) for number in range(len(step.parts(0)))]
    values = [step.block.shared.read(matrix, step.threads).view(np.uint32) for matrix in cells]
    step.write_columns(0, np.concatenate(values, 1))


def store_matrix(step: Step) -> None:
    """stmatrix.m8n8: the reverse (9.7.15.5.16)."""
    for number, column in enumerate(step.columns(1, "b32").T):
        values = np.ascontiguousarray(column)[:, None].view(np.uint8)
        step.block.shared.write(_matrix_cells(step, 0, number), step.threads, values)


INSTRUCTIONS = {
    "mov": move, "cvta": move, "ld": load_values, "st": store_values, "shfl": shuffle, "redux": reduce_warp, "elect": elect,
    "ldmatrix": load_matrix, "stmatrix": store_matrix,
}  # fmt: skip
