"""State of blocks that run together: registers over their threads, memories, and what asynchronous operations still owe."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rlpheads.kernels.tools.ptx.checked_memory import CheckedMemory, Flight, KernelError
from rlpheads.kernels.tools.ptx.counts import Counts
from rlpheads.kernels.tools.ptx.formats import Array
from rlpheads.kernels.tools.ptx.global_memory import GlobalMemory
from rlpheads.kernels.tools.ptx.program import Program

TENSOR_LANES, TENSOR_COLUMNS = 128, 512
"""Tensor memory of a multiprocessor (PTX ISA, 9.7.16.1 "Tensor Memory")."""

Action = Callable[[], None]


BlockIndex = tuple[int, int, int]


class BlockKind(NamedTuple):
    """Blocks of a launch that execute the same instructions."""

    name: str
    blocks: list[BlockIndex]
    num_outputs: int
    """Numbers that all of them compute together."""


@dataclass(frozen=True)
class KernelLaunch:
    """A compiled kernel, its arguments and its surroundings."""

    program: Program
    values: dict[str, int]
    """Each parameter; of a tensor map a handle."""
    tensor_maps: dict[int, Any]
    memory: GlobalMemory
    shared_bytes: int
    grid: tuple[int, int, int]
    late: bool = True
    """Asynchronous operations complete when they are waited for, else at once."""
    kind: BlockKind | None = None
    """Of the blocks for which it stands; None: all of the grid."""
    counts: Counts = field(default_factory=Counts)
    most_turns: int = 100_000
    """Branches and waits after which a block is taken to go on for ever."""


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

    def teach(self, threads: Array) -> None:
        """Tell threads that waited what is complete."""
        for flight in self.flights:
            flight.knows |= threads
        self.flights = [flight for flight in self.flights if not flight.knows.all()]

    def __str__(self) -> str:
        return f"an mbarrier in phase {self.phase}, {self.pending} arrivals and {self.num_bytes} bytes pending"


class Block:
    """One block of a launch, or several that have nothing in common but the code."""

    def __init__(self, launch: KernelLaunch, *indices: tuple[int, int, int]) -> None:
        self.launch, self.program = launch, launch.program
        size, number = self.program.num_threads, len(indices)
        self.num_threads = size * number
        self.threads = np.arange(self.num_threads)
        self.shared_start = self.threads // size * launch.shared_bytes
        self.shared = CheckedMemory("shared memory", launch.shared_bytes * number, np.uint8, self.num_threads)
        self.tensor = CheckedMemory("tensor memory", TENSOR_LANES * TENSOR_COLUMNS, np.uint32, self.num_threads)
        self.tensor_columns: dict[int, int] = {}
        fixed = {"global_smem": 0, **launch.values, "%tid.y": 0, "%tid.z": 0, "%ntid.x": size}
        fixed |= {f"%nctaid.{axis}": extent for axis, extent in zip("xyz", launch.grid, strict=True)}
        self.registers = {name: np.full(self.num_threads, value & 2**64 - 1, "u8") for name, value in fixed.items()}
        self.registers["%tid.x"] = (self.threads % size).astype("u8")
        for axis, places in zip("xyz", np.array(indices, "u8").T, strict=True):
            self.registers[f"%ctaid.{axis}"] = np.repeat(places, size)
        self.unset: dict[str, Array] = {}
        """Of registers that were not set in all threads, the bits that were not."""
        self.unfenced: set[str] = set()
        """Registers written since the last wgmma.fence."""
        self.copies: list[list[Action]] = [[]]
        self.products: list[list[Action]] = [[]]
        """Groups of cp.async and of wgmma that are not waited for; the last is still open."""
        self.tensor_loads: list[Action] = []
        self.tensor_stores: list[Action] = []
        self.tensor_products: list[Action] = []
        self.tensor_flights: list[Flight] = []
        """Of products in tensor memory that are not yet committed."""
        self.owed: dict[str, list[Action]] = {}
        """Registers that an asynchronous operation will set, and the list in which it stands."""
        self.barriers: dict[int, Barrier] = {}
        """By their addresses in shared memory."""

    def make(self, name: str) -> Array:
        """The values of a register, unset at first."""
        if name not in self.registers:
            widths = self.program.widths
            bits = widths.get(name) or widths.get(name.rstrip("0123456789"))
            if bits is None:
                raise NotImplementedError(f"register {name}")
            self.registers[name] = np.zeros(self.num_threads, bool if bits == 1 else f"u{bits // 8}")
            self.unset[name] = ~self.registers[name]
        return self.registers[name]

    def barrier_at(self, where: int) -> Barrier:
        """The mbarrier at an address of shared memory."""
        if where not in self.barriers:
            raise KernelError(f"no mbarrier at {where}")
        return self.barriers[where]

    def later(self, queue: list[Action], action: Action) -> None:
        """What an asynchronous operation does: when it is waited for, or in the early mode at once."""
        if self.launch.late:
            queue.append(action)
        else:
            action()

    def drain(self) -> None:
        """The end of a block, by which everything must have been waited for."""
        left = [*self.copies, *self.products, self.tensor_loads, self.tensor_stores]
        if any(left) or any(barrier.actions for barrier in self.barriers.values()) or self.tensor_columns:
            raise KernelError("the block ends before what it began has been waited for, or keeps tensor memory")


def complete(actions: list[Action]) -> None:
    """What a wait does."""
    while actions:
        actions.pop(0)()


def complete_groups(groups: list[list[Action]], kept: int) -> None:
    """Complete all groups but the last ones; the open one at the end does not count."""
    while len(groups) - 1 > kept:
        complete(groups.pop(0))
