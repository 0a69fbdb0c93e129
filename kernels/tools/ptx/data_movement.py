"""Moves, loads, stores, and exchange between the threads of a warp (PTX ISA, 9.7.9; matrices in 9.7.15.5)."""

import numpy as np

from rlpheads.kernels.tools.ptx.block import Block
from rlpheads.kernels.tools.ptx.checked_memory import KernelError
from rlpheads.kernels.tools.ptx.formats import Array, numpy_type, unsigned
from rlpheads.kernels.tools.ptx.program import Group, Instruction, Register


def move(block: Block, instruction: Instruction, active: Array) -> None:
    """mov: copy, or take apart and put together vectors of registers, lowest bits first (9.7.9 "mov").

    Triton's compiler places some before the wait of the asynchronous operation that sets their source, where the ISA leaves
    a read undefined; these are done when the operation is.
    """
    target, source = instruction.operands
    kind = instruction.kind
    owed = [
        block.owed[part.name] for part in instruction.parts(1) if isinstance(part, Register) and part.name in block.owed
    ]
    if owed:
        block.put_off(instruction.parts(0), active, owed[-1], lambda: move(block, instruction, active))
        return
    if isinstance(source, Group):
        _put_together(block, instruction, active)
    elif isinstance(target, Group):
        _take_apart(block, instruction, active)
    else:
        block.write(target, block.read(source, kind, active), active)


def _put_together(block: Block, instruction: Instruction, active: Array) -> None:
    """A vector into one register; compilers put unset parts where nobody will look."""
    sources, target = instruction.parts(1), instruction.operands[0]
    holes = tuple(block.is_unset(part, active) for part in sources)
    kind = f"b{numpy_type(instruction.kind).itemsize * 8 // len(sources)}"
    columns = [
        np.zeros(1, numpy_type(kind)) if hole else block.read(part, kind, active)
        for part, hole in zip(sources, holes, strict=True)
    ]
    joined = np.ascontiguousarray(np.stack(np.broadcast_arrays(*columns), -1))
    block.write(target, joined.view(numpy_type(instruction.kind))[..., 0], active)
    if any(holes) and isinstance(target, Register):
        block.holes[target.name] = holes


def _take_apart(block: Block, instruction: Instruction, active: Array) -> None:
    source, targets = instruction.operands[1], instruction.parts(0)
    holes = block.holes.pop(source.name, None) if isinstance(source, Register) else None
    parts = _columns(block.read(source, instruction.kind, active), len(targets), block.num_threads)
    for target, values, hole in zip(targets, parts, holes or (False,) * len(targets), strict=True):
        if not hole:
            block.write(target, values, active)
    if holes and isinstance(source, Register):
        block.holes[source.name] = holes


def _columns(values: Array, number: int, num_threads: int) -> Array:
    whole = np.ascontiguousarray(np.broadcast_to(values, (num_threads,)))
    return whole.view(unsigned(whole.dtype.itemsize // number)).reshape(num_threads, number).T


def load_values(block: Block, instruction: Instruction, active: Array) -> None:
    """ld: from parameters, shared or global memory (9.7.9 "ld")."""
    if instruction.modifiers[0] == "param":
        _load_parameter(block, instruction, active)
    elif instruction.modifiers[0].startswith("shared"):
        _load_shared(block, instruction, active)
    else:
        _load_global(block, instruction, active)


def _load_parameter(block: Block, instruction: Instruction, active: Array) -> None:
    source = instruction.address(1)
    assert isinstance(source.base, Register)
    if source.offset:
        raise KernelError("an offset into a parameter")
    value = block.launch.values[source.base.name] & 2**64 - 1
    block.write(instruction.operands[0], np.array(value, np.uint64).astype(numpy_type(instruction.kind)), active)


def _spread(block: Block, values: Array, active: Array) -> Array:
    """Values of the active threads at their places."""
    whole = np.zeros((block.num_threads, *values.shape[1:]), values.dtype)
    whole[active] = values
    return whole


def shared_cells(block: Block, instruction: Instruction, place: int, size: int, active: Array) -> Array:
    """Bytes that each active thread touches (T, size), counted; they begin at a multiple of the size."""
    addresses = block.addresses(instruction.address(place), "u32", active)
    _align(addresses, size, "shared")
    block.launch.counts.shared(addresses, block.threads[active], size)
    return addresses[:, None] + np.arange(size)


def _load_shared(block: Block, instruction: Instruction, active: Array) -> None:
    kind = numpy_type(instruction.kind)
    targets = instruction.parts(0)
    cells = shared_cells(block, instruction, 1, kind.itemsize * len(targets), active)
    values = _spread(block, block.shared.read(cells, block.threads[active]).view(kind), active)
    for number, target in enumerate(targets):
        block.write(target, np.ascontiguousarray(values[:, number]), active)


def _load_global(block: Block, instruction: Instruction, active: Array) -> None:
    kind = numpy_type(instruction.kind)
    addresses = block.addresses(instruction.address(1), "u64", active)
    targets = instruction.parts(0)
    _align(addresses, kind.itemsize * len(targets), "global")
    for number, target in enumerate(targets):
        values = block.launch.memory.load(addresses + number * kind.itemsize, kind.itemsize)
        block.write(target, _spread(block, values.view(kind), active), active)


def _align(addresses: Array, size: int, space: str) -> None:
    if (addresses % size).any():
        raise KernelError(f"{space} address {int(addresses[addresses % size != 0][0])} is no multiple of {size}")


def store_values(block: Block, instruction: Instruction, active: Array) -> None:
    """st: to shared or global memory (9.7.9 "st")."""
    kind = numpy_type(instruction.kind)
    sources = [block.column(part, instruction.kind, active) for part in instruction.parts(1)]
    values = np.ascontiguousarray(np.stack([source[active] for source in sources], 1))
    size = kind.itemsize * len(sources)
    if instruction.modifiers[0].startswith("shared"):
        cells = shared_cells(block, instruction, 0, size, active)
        block.shared.write(cells, block.threads[active], values.view(np.uint8))
        return
    addresses = block.addresses(instruction.address(0), "u64", active)
    _align(addresses, size, "global")
    block.launch.counts.stores[size] += len(addresses)
    for number in range(len(sources)):
        block.launch.memory.store(
            addresses + number * kind.itemsize, np.ascontiguousarray(values[:, number]).view(unsigned(kind.itemsize))
        )


def shuffle(block: Block, instruction: Instruction, active: Array) -> None:
    """shfl.sync: a value of another lane: lane xor b, or lane b (9.7.9 "shfl.sync")."""
    lane, warp = block.threads % 32, block.threads - block.threads % 32
    by = block.read(instruction.operands[2], "u32", active).astype(np.int64)
    source = warp + (lane ^ by if "bfly" in instruction.modifiers else by % 32)
    if not active[source[active]].all():
        raise KernelError("shfl reads a lane that does not take part")
    values = block.column(instruction.operands[1], "b32", active)
    block.write(instruction.parts(0)[0], values[source], active)


def reduce_warp(block: Block, instruction: Instruction, active: Array) -> None:
    """redux.sync.max and .min of float32 over a warp (9.7.13 "redux.sync")."""
    function = np.fmax if "max" in instruction.modifiers else np.fmin
    values = block.read(instruction.operands[1], instruction.kind, active).reshape(-1, 32)
    block.write(instruction.operands[0], np.repeat(function.reduce(values, 1), 32), active)


def elect(block: Block, instruction: Instruction, active: Array) -> None:
    """elect.sync d|p: the lowest active lane of each warp (9.7.13 "elect.sync")."""
    leader = np.repeat(active.reshape(-1, 32).argmax(1), 32)
    lane, chosen = instruction.parts(0)
    block.write(lane, leader.astype(np.uint32), active)
    block.write(chosen, block.threads % 32 == leader, active)


def _matrix_cells(block: Block, instruction: Instruction, place: int, number: int, active: Array) -> Array:
    """Matrix `number` of 8 × 8 of 16 bits: lanes 8n to 8n+7 give its rows; lane l has places 2(l mod 4), +1 of row l/4.

    With .trans rows and places change their parts.
    """
    lane = block.threads % 32
    rows = np.zeros(block.num_threads, np.int64)
    rows[active] = block.addresses(instruction.address(place), "u32", active)
    if (rows % 16).any():
        raise KernelError("a row of a matrix begins at no multiple of 16 bytes")
    pair, other = lane[:, None] % 4 * 2 + np.arange(2), np.repeat(lane[:, None] // 4, 2, 1)
    row, column = (pair, other) if "trans" in instruction.modifiers else (other, pair)
    starts = rows[(block.threads - lane)[:, None] + 8 * number + row] + 2 * column
    block.launch.counts.shared(starts[active][:, 0] // 4 * 4, block.threads[active], 4)
    return (starts[active][:, :, None] + np.arange(2)).reshape(-1, 4)


def load_matrix(block: Block, instruction: Instruction, active: Array) -> None:
    """ldmatrix.m8n8: one to four matrices from shared memory (9.7.15.5.15)."""
    for number, target in enumerate(instruction.parts(0)):
        cells = _matrix_cells(block, instruction, 1, number, active)
        values = block.shared.read(cells, block.threads[active]).view(np.uint32)[:, 0]
        block.write(target, _spread(block, values, active), active)


def store_matrix(block: Block, instruction: Instruction, active: Array) -> None:
    """stmatrix.m8n8: the reverse (9.7.15.5.16)."""
    for number, source in enumerate(instruction.parts(1)):
        cells = _matrix_cells(block, instruction, 0, number, active)
        values = block.column(source, "b32", active)[active]
        block.shared.write(cells, block.threads[active], np.ascontiguousarray(values)[:, None].view(np.uint8))


INSTRUCTIONS = {
    "mov": move, "cvta": move, "ld": load_values, "st": store_values, "shfl": shuffle, "redux": reduce_warp, "elect": elect,
    "ldmatrix": load_matrix, "stmatrix": store_matrix,
}  # fmt: skip
