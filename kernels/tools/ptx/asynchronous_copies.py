"""cp.async, tensor copies by the TMA unit, and the mbarriers on which they complete (PTX ISA, 9.7.9.25, 9.7.13.15)."""

from dataclasses import dataclass

import numpy as np

from rlpheads.kernels.tools.ptx.block import Barrier, complete_groups
from rlpheads.kernels.tools.ptx.checked_memory import KernelError
from rlpheads.kernels.tools.ptx.formats import Array
from rlpheads.kernels.tools.ptx.global_memory import GlobalMemory
from rlpheads.kernels.tools.ptx.program import Address
from rlpheads.kernels.tools.ptx.step import Step


def barrier_object(step: Step) -> None:
    """mbarrier.init, .arrive.expect_tx and .inval by one thread; `.try_wait` is the scheduler's."""
    block, action = step.block, step.modifiers[0]
    where, *rest = step.operands[action == "arrive" :]
    start, number = step.one(where), step.one(rest[0]) if rest else 0
    cells = start + np.arange(8)[None]
    if action == "init":
        if start in block.barriers:
            raise KernelError(f"initialises the mbarrier at {start} twice")
        block.shared.write(cells, step.thread(), np.zeros((1, 8), np.uint8))
        block.barriers[start] = Barrier(number, number)
        return
    barrier = block.barrier_at(start)
    block.shared.read(cells, step.thread())
    if action == "arrive":
        barrier.arrive(1, number)
    elif barrier.actions:
        raise KernelError("invalidates an mbarrier on which an operation will complete")
    else:
        del block.barriers[start]


@dataclass(frozen=True)
class TensorMap:
    """A matrix in global memory and the box that one copy takes of it (5.5.1 "Tensor Dimension, size and format")."""

    base: int
    shape: tuple[int, int]
    stride: int
    """Elements between rows."""
    itemsize: int
    box: tuple[int, int]
    swizzle: int
    """16-byte pieces that change places: 0, or log2 of them: 1, 2 or 3 for 32, 64 or 128 bytes (5.5.5)."""

    def box_at(self, memory: GlobalMemory, row: int, column: int) -> Array:
        """The bytes of a box, zeros where it lies outside."""
        rows = row + np.arange(self.box[0])[:, None]
        columns = column + np.arange(self.box[1])[None]
        inside = (rows >= 0) & (rows < self.shape[0]) & (columns >= 0) & (columns < self.shape[1])
        values = np.zeros(self.box, f"u{self.itemsize}")
        addresses = self.base + (rows * self.stride + columns) * self.itemsize
        values[inside] = memory.load(addresses[inside], self.itemsize)
        return values.view(np.uint8).ravel()


def swizzled(cells: Array, swizzle: int) -> Array:
    """Address bits 4 and up, xor those from 7 up: 1, 2 or 3 of them (5.5.5 "Swizzling modes")."""
    return cells ^ (cells >> 7 & (1 << swizzle) - 1) << 4


def copy(step: Step) -> None:
    """cp.async: bulk tensors, and 4 to 16 bytes a thread in groups (9.7.9.25)."""
    if "bulk" in step.modifiers:
        _copy_tensor(step)
    elif "commit_group" in step.modifiers:
        step.block.copies.append([])
    elif "wait_group" in step.modifiers:
        complete_groups(step.block.copies, step.one(step.operands[0]))
    else:
        _copy_bytes(step)


def _copy_bytes(step: Step) -> None:
    """cp.async.ca and .cg: what lies beyond the size of the source becomes zeros (9.7.9.25.3.1)."""
    target, origin, most, *given = step.operands
    block, threads, size = step.block, step.threads, step.one(most)
    cells, source = step.shared_cells(target, size), step.addresses(origin, "u64")
    filled = step.read(given[0] if given else size, "u32")[step.active]
    if (filled > size).any():
        raise KernelError("cp.async of more than its size")
    flight = block.shared.begin(step.instruction.text, cells, threads, writes=True, proxy=False)
    block.launch.counts.shared(cells, threads)

    def land() -> None:
        inside = np.arange(size) < filled[:, None]
        values = np.zeros((len(threads), size), np.uint8)
        values[inside] = block.launch.memory.load((source[:, None] + np.arange(size))[inside], 1)
        block.shared.data[cells] = values

    block.later(block.copies[-1], land)
    block.copies[-1].append(lambda: block.shared.settle(flight, cells, threads))


def _copy_tensor(step: Step) -> None:
    """cp.async.bulk.tensor.2d: one thread moves a box, which completes on an mbarrier (9.7.9.25.5.2)."""
    target, source, where = step.operands
    assert isinstance(source, Address), step.instruction.text
    block, thread, start = step.block, step.thread(), step.one(target)
    column, row = (step.one(part, "s32") for part in source.coordinates)
    tensor_map: TensorMap = block.launch.tensor_maps[step.one(source.base, "u64")]
    barrier = block.barrier_at(step.one(where))
    if start % 128:
        raise KernelError("a tensor copy to no multiple of 128 bytes")
    num_bytes = tensor_map.box[0] * tensor_map.box[1] * tensor_map.itemsize
    block.launch.counts.shared_bytes += num_bytes
    cells = swizzled(start + np.arange(num_bytes), tensor_map.swizzle)
    flight = block.shared.begin(step.instruction.text, cells[None], thread, writes=True, proxy=True)

    def land() -> None:
        block.shared.data[cells] = tensor_map.box_at(block.launch.memory, row, column)
        barrier.flights.append(flight)
        barrier.arrive(0, -num_bytes)

    block.later(barrier.actions, land)


def fence(step: Step) -> None:
    """fence.proxy.async (9.7.13.4)."""
    if step.modifiers[:2] == ("proxy", "async"):
        step.block.shared.fence(step.active)


INSTRUCTIONS = {"cp": copy, "mbarrier": barrier_object, "fence": fence}
