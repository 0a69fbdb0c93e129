"""Matrix products on registers and shared memory: mma.sync and wgmma (PTX ISA, 9.7.15).

Products are exact and summed in float64, and the sum with the accumulator is rounded once to float32. The ISA says no more
than "at least single precision" and leaves order and rounding of the sum open, so that a chip's last bits may differ.
"""

import numpy as np

from rlpheads.kernels.tools.ptx.asynchronous_copies import swizzled, wait_for_groups
from rlpheads.kernels.tools.ptx.block import Block
from rlpheads.kernels.tools.ptx.checked_memory import KernelError
from rlpheads.kernels.tools.ptx.formats import Array, elements
from rlpheads.kernels.tools.ptx.program import Group, Instruction, Operand

WARPGROUP = 128


def _fragments(block: Block, parts: tuple[Operand, ...], kind: str, active: Array) -> Array:
    """Registers of a matrix operand as numbers (registers, threads, 1 or 2)."""
    raw = [block.column(part, "b32", active) for part in parts]
    return elements(np.ascontiguousarray(np.stack(raw))[..., None].view(np.uint8), kind)


def _left(fragments: Array) -> Array:
    """A of a warp (warps, 16, K): register r has rows lane/4 + 8·(r mod 2), columns from K/2·(r/2) on (9.7.15.5.8)."""
    _, num_threads, width = fragments.shape
    lane, warp = np.arange(num_threads) % 32, np.arange(num_threads) // 32
    matrix = np.zeros((num_threads // 32, 16, 8 * width))
    for register, values in enumerate(fragments):
        for place in range(width):
            column = lane % 4 * width + place + 4 * width * (register // 2)
            matrix[warp, lane // 4 + 8 * (register % 2), column] = values[:, place]
    return matrix


def _right(fragments: Array) -> Array:
    """B of a warp (warps, K, 8): a register has column lane/4."""
    _, num_threads, width = fragments.shape
    lane, warp = np.arange(num_threads) % 32, np.arange(num_threads) // 32
    matrix = np.zeros((num_threads // 32, 8 * width, 8))
    for register, values in enumerate(fragments):
        for place in range(width):
            matrix[warp, lane % 4 * width + place + 4 * width * register, lane // 4] = values[:, place]
    return matrix


def _accumulator_place(register: int, lane: Array) -> tuple[Array, Array]:
    """Row and column within a warp's 16 rows; four registers an 8-column block."""
    return lane // 4 + 8 * (register // 2 % 2), 8 * (register // 4) + lane % 4 * 2 + register % 2


def multiply_fragments(block: Block, instruction: Instruction, active: Array) -> None:
    """mma.sync.m16n8k16 of bf16 or fp16, m16n8k8 of tf32 (9.7.15.5)."""
    warps = active.reshape(-1, 32)
    if (warps.any(1) & ~warps.all(1)).any():
        raise KernelError("mma.sync by a part of a warp")
    kind = instruction.modifiers[-2]
    lane, warp = block.threads % 32, block.threads // 32
    product = _left(_fragments(block, instruction.parts(1), kind, active))
    product = product @ _right(_fragments(block, instruction.parts(2), kind, active))
    targets, totals = instruction.parts(0), instruction.parts(3)
    for register, (target, total) in enumerate(zip(targets, totals, strict=True)):
        row, column = _accumulator_place(register, lane)
        value = product[warp, row, column] + block.read(total, "f32", active)
        block.write(target, value.astype(np.float32), active)


def matrix_cells(descriptor: int, swizzle: int, rows: int, across: bool) -> Array:
    """Cells of `rows` rows of 32 bytes along K in shared memory, by a matrix descriptor (9.7.15.6, 9.7.16.5).

    Its start and strides are in units of 16 bytes. Of a K-major matrix 8 rows follow each other at the width of the swizzle,
    and the next 8 at a stride. `across`: 16-bit numbers of one K side by side, 8 such rows at the width, the next 8 at the
    stride, and what is wider than the swizzle at the leading stride.
    """
    start, leading, stride = ((descriptor >> place & 0x3FFF) * 16 for place in (0, 16, 32))
    if descriptor >> 49 & 7 or not swizzle:
        raise NotImplementedError("a matrix descriptor with a base offset or without swizzling")
    row, width = np.arange(rows)[:, None, None], 16 << swizzle
    depth, byte = np.arange(16)[None, :, None], np.arange(2)
    if across:
        cells = start + row * 2 % width + row * 2 // width * leading + depth % 8 * width + depth // 8 * stride + byte
    else:
        cells = start + row // 8 * stride + row % 8 * width + 2 * depth + byte
    return swizzled(cells.reshape(rows, 32), swizzle)


def warpgroup(block: Block, instruction: Instruction, active: Array) -> None:
    """wgmma: asynchronous products of 128 threads, in groups (9.7.15.7)."""
    action = instruction.modifiers[0]
    if action == "fence":
        block.unfenced_registers.clear()
    elif action == "commit_group":
        block.products.append([])
    elif action == "wait_group":
        wait_for_groups(block.products, block.one(instruction.operands[0], "u32", active))
    else:
        _begin_product(block, instruction, active)


def _begin_product(block: Block, instruction: Instruction, active: Array) -> None:
    groups = active.reshape(-1, WARPGROUP)
    if (groups.any(1) & ~groups.all(1)).any():
        raise KernelError("wgmma by a part of a warpgroup")
    targets, left = instruction.parts(0), instruction.operands[1]
    fenced = [*targets, *(left.parts if isinstance(left, Group) else ())]
    if any(part.name in block.unfenced_registers for part in fenced):  # type: ignore[union-attr]
        raise KernelError("registers of a wgmma were written since the last wgmma.fence")
    if [block.one(scale, "s32", active) for scale in instruction.operands[4:6]] != [1, 1]:
        raise NotImplementedError(instruction.text)
    totals = block.read(instruction.operands[3], "pred", active)
    adds = bool(np.broadcast_to(totals, (block.num_threads,))[active].all())
    jobs = [_GroupProduct(block, instruction, active, int(number), adds) for number in np.flatnonzero(groups.any(1))]
    for job in jobs:
        if block.launch.late:
            block.put_off(targets, job.active, block.products[-1], job.finish)
        else:
            job.compute()
            block.products[-1].append(job.finish)


class _GroupProduct:
    """One warpgroup's product, from its beginning to the wait that completes it."""

    def __init__(self, block: Block, instruction: Instruction, active: Array, number: int, adds: bool) -> None:
        self._block, self._instruction, self._adds = block, instruction, adds
        self.active = active & (block.threads // WARPGROUP == number)
        self._kind = instruction.modifiers[-1]
        self._flights = []
        self._cells = {}
        columns = int(instruction.modifiers[3].partition("n")[2].partition("k")[0])
        self._from_registers = isinstance(instruction.operands[1], Group)
        for place, rows in ((1, 64), (2, columns)):
            if place == 1 and self._from_registers:
                continue
            descriptor = block.one(instruction.operands[place], "u64", self.active)
            swizzle = (0, 3, 2, 1)[descriptor >> 62]
            across = [block.one(flag, "s32", active) == 1 for flag in instruction.operands[6:]] or [False, False]
            cells = matrix_cells(descriptor, swizzle, rows, across[place - 1])
            self._cells[place] = cells
            group, text = np.array([number]), instruction.text[:60]
            self._flights.append(
                block.shared.begin(text, cells.reshape(1, -1), group, writes=False, span=WARPGROUP, proxy=True)
            )
        self._done = False

    def compute(self) -> None:
        """Read the operands, multiply, write the registers."""
        block, instruction, active = self._block, self._instruction, self.active
        if self._from_registers:
            left = _left(_fragments(block, instruction.parts(1), self._kind, active))
            left = left[np.flatnonzero(active.reshape(-1, 32).any(1))].reshape(64, -1)
        else:
            left = elements(block.shared.data[self._cells[1]], self._kind)
        product = left @ elements(block.shared.data[self._cells[2]], self._kind).T
        lane, warp = block.threads % 32, block.threads % WARPGROUP // 32
        for register, target in enumerate(instruction.parts(0)):
            row, column = _accumulator_place(register, lane)
            value = product[16 * warp + row, column]
            if self._adds:
                value = value + block.registers[target.name].view(np.float32)  # type: ignore[union-attr]
            block.write(target, value.astype(np.float32), active)
            block.unfenced_registers.discard(target.name)  # type: ignore[union-attr]
        self._done = True

    def finish(self) -> None:
        """What wgmma.wait_group does."""
        if not self._done:
            self.compute()
        for flight in self._flights:
            flight.knows |= self.active


INSTRUCTIONS = {"mma": multiply_fragments, "wgmma": warpgroup}
