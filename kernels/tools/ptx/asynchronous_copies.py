"""cp.async, tensor copies by the TMA unit, and the mbarriers on which they complete (PTX ISA, 9.7.9.25, 9.7.13.15)."""

from dataclasses import dataclass, field

import numpy as np

from rlpheads.kernels.tools.ptx.block import Action, Block
from rlpheads.kernels.tools.ptx.checked_memory import Flight, KernelError
from rlpheads.kernels.tools.ptx.formats import Array
from rlpheads.kernels.tools.ptx.global_memory import GlobalMemory
from rlpheads.kernels.tools.ptx.program import Literal
from rlpheads.kernels.tools.ptx.step import Step


@dataclass
class Barrier:
    """An mbarrier object: a phase is complete when no arrival and no byte is pending (9.7.13.15.1)."""

    count: int
    pending: int
    num_bytes: int = 0
    phase: int = 0
    actions: list[Action] = field(default_factory=list)
    """Asynchronous operations that will complete on it."""
    flights: list[Flight] = field(default_factory=list)

    def passed(self, parity: int) -> bool:
        """Whether the phase of that parity is complete."""
        return self.phase % 2 != parity % 2

    def arrive(self, arrivals: int, num_bytes: int) -> None:
        """Count arrivals, and bytes that are expected or, negative, have come."""
        self.pending -= arrivals
        self.num_bytes += num_bytes
        if self.pending == 0 and self.num_bytes == 0:
            self.phase, self.pending = self.phase + 1, self.count

    def land(self) -> None:
        """Complete what is under way."""
        actions, self.actions = self.actions, []
        for action in actions:
            action()

    def teach(self, threads: Array) -> None:
        """Tell threads that waited what is complete."""
        for flight in self.flights:
            flight.knows |= threads
        self.flights = [flight for flight in self.flights if not flight.knows.all()]

    def __str__(self) -> str:
        return f"an mbarrier in phase {self.phase}, {self.pending} arrivals and {self.num_bytes} bytes pending"


def barrier_at(block: Block, where: int) -> Barrier:
    """The mbarrier at an address of shared memory."""
    if where not in block.barriers:
        raise KernelError(f"no mbarrier at {where}")
    barrier: Barrier = block.barriers[where]
    return barrier


def barrier_object(step: Step) -> None:
    """mbarrier.init, .arrive.expect_tx and .inval by one thread; `.try_wait` is the scheduler's."""
    block, action = step.block, step.modifiers[0]
    where = step.one(1 if action == "arrive" else 0)
    cells = where + np.arange(8)[None]
    if action == "init":
        if where in block.barriers:
            raise KernelError(f"initialises the mbarrier at {where} twice")
        block.shared.write(cells, step.thread(), np.zeros((1, 8), np.uint8))
        block.barriers[where] = Barrier(step.one(1), step.one(1))
        return
    barrier = barrier_at(block, where)
    block.shared.read(cells, step.thread())
    if action == "arrive":
        barrier.arrive(1, step.one(2) if len(step.operands) > 2 else 0)
    elif action == "inval":
        if barrier.actions:
            raise KernelError("invalidates an mbarrier on which an operation will complete")
        del block.barriers[where]
    else:
        raise NotImplementedError(step.instruction.text)


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
        wait_for_groups(step.block.copies, step.one(0))
    else:
        _copy_bytes(step)


def wait_for_groups(groups: list[list[Action]], kept: int) -> None:
    """Complete all groups but the last ones; the open one at the end does not count."""
    while len(groups) - 1 > kept:
        for action in groups.pop(0):
            action()


def _copy_bytes(step: Step) -> None:
    """cp.async.ca and .cg: what lies beyond the size of the source becomes zeros (9.7.9.25.3.1)."""
    block, threads, size = step.block, step.threads, step.one(2)
    cells, source = step.shared_cells(0, size), step.addresses(1, "u64")
    filled = step.column(step.operands[3] if len(step.operands) > 3 else Literal(size), "u32")[step.active]
    if (filled > size).any():
        raise KernelError("cp.async of more than its size")
    flight = block.shared.begin(step.instruction.text, cells, threads, writes=True, proxy=False)
    block.launch.counts.shared(cells, threads)

    def values() -> Array:
        inside = np.arange(size) < filled[:, None]
        found = np.zeros((len(threads), size), np.uint8)
        found[inside] = block.launch.memory.load((source[:, None] + np.arange(size))[inside], 1)
        return found

    early = None if block.launch.late else values()
    if early is not None:
        block.shared.fill(cells, early)
    land = lambda: block.shared.settle(flight, cells, threads, values() if early is None else early)  # noqa: E731
    block.copies[-1].append(land)


def _copy_tensor(step: Step) -> None:
    """cp.async.bulk.tensor.2d: one thread moves a box, which completes on an mbarrier (9.7.9.25.5.2)."""
    block, thread, start = step.block, step.thread(), step.one(0)
    source = step.address(1)
    column, row = (step.one(part, "s32") for part in source.coordinates)
    tensor_map: TensorMap = block.launch.tensor_maps[step.one(source.base, "u64")]
    barrier = barrier_at(block, step.one(2))
    if start % 128:
        raise KernelError("a tensor copy to no multiple of 128 bytes")
    num_bytes = tensor_map.box[0] * tensor_map.box[1] * tensor_map.itemsize
    block.launch.counts.shared_bytes += num_bytes
    cells = swizzled(start + np.arange(num_bytes), tensor_map.swizzle)
    flight = block.shared.begin(step.instruction.text, cells[None], thread, writes=True, proxy=True)

    def land() -> None:
        block.shared.fill(cells, tensor_map.box_at(block.launch.memory, row, column))
        barrier.flights.append(flight)
        barrier.arrive(0, -num_bytes)

    if block.launch.late:
        barrier.actions.append(land)
    else:
        land()


def fence(step: Step) -> None:
    """fence.proxy.async (9.7.13.4)."""
    if step.modifiers[:2] == ("proxy", "async"):
        step.block.shared.fence(step.active)


INSTRUCTIONS = {"cp": copy, "mbarrier": barrier_object, "fence": fence}
