"""Matrix products on registers and shared memory: mma.sync and wgmma (PTX ISA, 9.7.15).

Products are exact and summed in float64, and the sum with the accumulator is rounded once to float32. The ISA says no more
than "at least single precision" and leaves order and rounding of the sum open, so that a chip's last bits may differ.
"""

import numpy as np

from rlpheads.kernels.tools.ptx.asynchronous_copies import swizzled
from rlpheads.kernels.tools.ptx.block import complete_groups
from rlpheads.kernels.tools.ptx.checked_memory import Flight, KernelError
from rlpheads.kernels.tools.ptx.formats import Array, elements
from rlpheads.kernels.tools.ptx.program import Operand, parts
from rlpheads.kernels.tools.ptx.step import Step

WARPGROUP = 128


def _from_registers(step: Step, source: Operand, kind: str, rows: int) -> Array:
    """A (warps, 16, K) or B (warps, 8, K): lane l has row l/4 and 1 or 2 numbers from place l mod 4 on (9.7.15.5.8).

    A's register r has rows from 8·(r mod 2) and columns from K/2·(r/2) on, B's columns from K/2·r on.
    """
    raw = np.stack([step.read(part, "b32") for part in parts(source)])[..., None].view(np.uint8)
    numbers, warps = elements(raw, kind), step.block.num_threads // 32
    by_place = numbers.reshape(-1, rows // 8, warps, 8, 4, numbers.shape[-1]).transpose(2, 1, 3, 0, 4, 5)
    return by_place.reshape(warps, rows, -1)


def _to_registers(product: Array) -> Array:
    """16 rows a warp into registers (R, threads): four an 8-column block, two of row l/4 and two of the row 8 below."""
    by_lane = product.reshape(-1, 2, 8, product.shape[-1] // 8, 4, 2).transpose(3, 1, 5, 0, 2, 4)
    return by_lane.reshape(product.shape[-1] // 2, -1)


def _require_whole(step: Step, size: int) -> Array:
    """Which warps or warpgroups execute the instruction; each must as a whole."""
    groups = step.active.reshape(-1, size)
    if (groups.any(1) & ~groups.all(1)).any():
        raise KernelError(f"{step.name} by a part of {size} threads")
    return np.flatnonzero(groups.any(1))


def multiply_fragments(step: Step) -> None:
    """mma.sync.m16n8k16 of bf16 or fp16, m16n8k8 of tf32 (9.7.15.5)."""
    _require_whole(step, 32)
    target, a, b, total = step.operands
    kind = step.modifiers[-2]
    product = _from_registers(step, a, kind, 16) @ _from_registers(step, b, kind, 8).transpose(0, 2, 1)
    totals = _to_registers(product) + np.stack([step.read(part, "f32") for part in parts(total)])
    for part, values in zip(parts(target), totals.astype(np.float32), strict=True):
        step.write(part, values)


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


def begin_reading(step: Step, cells: Array, party: int, span: int = 1) -> Flight:
    """Begin to read an operand of an asynchronous product from shared memory."""
    step.block.launch.counts.shared_bytes += cells.size
    text, flat = step.instruction.text[:90], cells.reshape(1, -1)
    return step.block.shared.begin(text, flat, np.array([party]), writes=False, span=span, proxy=True)


def warpgroup(step: Step) -> None:
    """wgmma: asynchronous products of 128 threads, in groups (9.7.15.7)."""
    action, block = step.modifiers[0], step.block
    if action == "fence":
        block.unfenced.clear()
    elif action == "commit_group":
        block.products.append([])
    elif action == "wait_group":
        complete_groups(block.products, step.one(step.operands[0]))
    else:
        target, a, _, _, *scales = step.operands
        if not block.unfenced.isdisjoint(parts(target) + (a if isinstance(a, tuple) else ())):
            raise KernelError("registers of a wgmma were written since the last wgmma.fence")
        if scales[:2] != [1, 1]:
            raise NotImplementedError(step.instruction.text)
        for number in _require_whole(step, WARPGROUP):
            mine = step.active & (block.threads // WARPGROUP == number)
            _begin_product(Step(block, step.instruction, mine), int(number))


def _begin_product(step: Step, number: int) -> None:
    target, a, b, scale, _, _, *across = step.operands
    block, columns = step.block, int(step.modifiers[3].partition("n")[2].partition("k")[0])
    adds, cells, flights = step.read(scale, "pred")[step.active].all(), {}, []
    for name, source, rows, flag in (("a", a, 64, across[:1]), ("b", b, columns, across[1:])):
        if not isinstance(source, tuple):
            descriptor = step.one(source, "u64")
            cells[name] = matrix_cells(descriptor, (0, 3, 2, 1)[descriptor >> 62], rows, flag == [1])
            flights.append(begin_reading(step, cells[name], number, WARPGROUP))

    def compute() -> None:
        if isinstance(a, tuple):
            left = _from_registers(step, a, step.kind, 16)[4 * number :][:4].reshape(64, -1)
        else:
            left = elements(block.shared.data[cells["a"]], step.kind)
        result = _to_registers(left @ elements(block.shared.data[cells["b"]], step.kind).T).T
        if adds:
            before = np.stack([block.registers[str(part)] for part in parts(target)], 1)[step.active]
            result = result + before.view(np.float32)
        step.write_columns(target, result.astype(np.float32))
        block.unfenced.difference_update(parts(target))

    def tell() -> None:
        for flight in flights:
            flight.knows |= step.active

    step.write_later(target, block.products[-1], compute)
    block.products[-1].append(tell)


INSTRUCTIONS = {"mma": multiply_fragments, "wgmma": warpgroup}
