"""Matrix products on registers and shared memory: mma.sync and wgmma (PTX ISA, 9.7.15).

Products are exact and summed in float64, and the sum with the accumulator is rounded once to float32. The ISA says no more
than "at least single precision" and leaves order and rounding of the sum open, so that a chip's last bits may differ.
"""

import numpy as np

from rlpheads.kernels.tools.ptx.asynchronous_copies import swizzled, wait_for_groups
from rlpheads.kernels.tools.ptx.checked_memory import Flight, KernelError
from rlpheads.kernels.tools.ptx.formats import Array, elements
from rlpheads.kernels.tools.ptx.program import Group, Register
from rlpheads.kernels.tools.ptx.step import Step

WARPGROUP = 128


def _fragments(step: Step, place: int, kind: str, right: bool) -> Array:
    """A (warps, 16, K) or B (warps, 8, K) from registers of 1 or 2 numbers: lane l has row l/4 and place l mod 4 (9.7.15.5.8).

    A's register r has rows from 8·(r mod 2) and columns from K/2·(r/2) on, B's columns from K/2·r on.
    """
    raw = np.stack([step.column(part, "b32") for part in step.parts(place)])
    numbers = elements(np.ascontiguousarray(raw)[..., None].view(np.uint8), kind)
    count, num_threads, width = numbers.shape
    lane, warp = np.arange(num_threads) % 32, np.arange(num_threads) // 32
    matrix = np.zeros((num_threads // 32, 8 if right else 16, 4 * width * (count if right else count // 2)))
    for register, values in enumerate(numbers):
        below, half = (0, register) if right else (8 * (register % 2), register // 2)
        for place in range(width):
            matrix[warp, lane // 4 + below, lane % 4 * width + place + 4 * width * half] = values[:, place]
    return matrix


def _accumulator_place(register: int, lane: Array) -> tuple[Array, Array]:
    """Row and column within a warp's 16 rows; four registers an 8-column block."""
    return lane // 4 + 8 * (register // 2 % 2), 8 * (register // 4) + lane % 4 * 2 + register % 2


def _require_whole(step: Step, size: int) -> Array:
    """Which warps or warpgroups execute the instruction; each must as a whole."""
    groups = step.active.reshape(-1, size)
    if (groups.any(1) & ~groups.all(1)).any():
        raise KernelError(f"{step.name} by a part of {size} threads")
    return np.flatnonzero(groups.any(1))


def multiply_fragments(step: Step) -> None:
    """mma.sync.m16n8k16 of bf16 or fp16, m16n8k8 of tf32 (9.7.15.5)."""
    _require_whole(step, 32)
    kind = step.modifiers[-2]
    lane, warp = step.block.threads % 32, step.block.threads // 32
    product = _fragments(step, 1, kind, False) @ _fragments(step, 2, kind, True).transpose(0, 2, 1)
    totals = [step.read(total, "f32") for total in step.parts(3)]
    for register, (target, total) in enumerate(zip(step.parts(0), totals, strict=True)):
        value = product[warp, *_accumulator_place(register, lane)] + total
        step.write(target, value.astype(np.float32))


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


def warpgroup(step: Step) -> None:
    """wgmma: asynchronous products of 128 threads, in groups (9.7.15.7)."""
    action, block = step.modifiers[0], step.block
    if action == "fence":
        block.unfenced.clear()
    elif action == "commit_group":
        block.products.append([])
    elif action == "wait_group":
        wait_for_groups(block.products, step.one(0))
    else:
        _begin_product(step)


def _begin_product(step: Step) -> None:
    numbers = _require_whole(step, WARPGROUP)
    left = step.parts(1) if isinstance(step.operands[1], Group) else ()
    if any(isinstance(part, Register) and part.name in step.block.unfenced for part in (*step.parts(0), *left)):
        raise KernelError("registers of a wgmma were written since the last wgmma.fence")
    if [step.one(scale, "s32") for scale in step.operands[4:6]] != [1, 1]:
        raise NotImplementedError(step.instruction.text)
    for number in numbers:
        mine = step.active & (step.block.threads // WARPGROUP == number)
        product = _GroupProduct(Step(step.block, step.instruction, mine), int(number))
        if step.block.launch.late:
            product.step.put_off(0, step.block.products[-1], product.finish)
        else:
            product.compute()
            step.block.products[-1].append(product.finish)


class _GroupProduct:
    """One warpgroup's product, from its beginning to the wait that completes it."""

    def __init__(self, step: Step, number: int) -> None:
        self.step = step
        self._kind, self._is_done = step.kind, False
        self._adds = bool(step.column(3, "pred")[step.active].all())
        self._flights: list[Flight] = []
        self._cells: dict[int, Array] = {}
        columns = int(step.modifiers[3].partition("n")[2].partition("k")[0])
        across = [step.one(flag, "s32") == 1 for flag in step.operands[6:]] or [False, False]
        for place, rows in ((1, 64), (2, columns)):
            if isinstance(step.operands[place], Group):
                continue
            descriptor = step.one(place, "u64")
            cells = matrix_cells(descriptor, (0, 3, 2, 1)[descriptor >> 62], rows, across[place - 1])
            self._cells[place] = cells
            step.block.launch.counts.shared_bytes += cells.size
            text, party = step.instruction.text[:60], np.array([number])
            self._flights.append(
                step.block.shared.begin(text, cells.reshape(1, -1), party, writes=False, span=WARPGROUP, proxy=True)
            )

    def compute(self) -> None:
        """Read the operands, multiply, write the registers."""
        step, block = self.step, self.step.block
        if 1 in self._cells:
            left = elements(block.shared.data[self._cells[1]], self._kind)
        else:
            warps = _fragments(step, 1, self._kind, False)
            left = warps[np.flatnonzero(step.active.reshape(-1, 32).any(1))].reshape(64, -1)
        product = left @ elements(block.shared.data[self._cells[2]], self._kind).T
        lane, warp = block.threads % 32, block.threads % WARPGROUP // 32
        for register, target in enumerate(step.parts(0)):
            assert isinstance(target, Register)
            row, column = _accumulator_place(register, lane)
            value = product[16 * warp + row, column]
            if self._adds:
                value = value + block.registers[target.name].view(np.float32)
            step.write(target, value.astype(np.float32))
            block.unfenced.discard(target.name)
        self._is_done = True

    def finish(self) -> None:
        """What wgmma.wait_group does."""
        if not self._is_done:
            self.compute()
        for flight in self._flights:
            flight.knows |= self.step.active


INSTRUCTIONS = {"mma": multiply_fragments, "wgmma": warpgroup}
