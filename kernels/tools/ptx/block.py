"""State of one block: registers over its threads, memories, and what its asynchronous operations still owe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from rlpheads.kernels.tools.ptx.checked_memory import CheckedMemory, Flight, KernelError
from rlpheads.kernels.tools.ptx.counts import Counts
from rlpheads.kernels.tools.ptx.formats import Array, as_bits, numpy_type, unsigned
from rlpheads.kernels.tools.ptx.global_memory import GlobalMemory
from rlpheads.kernels.tools.ptx.program import Address, Literal, Operand, Program, Register

TENSOR_LANES, TENSOR_COLUMNS = 128, 512
"""Tensor memory of a multiprocessor (PTX ISA, 9.7.16.1 "Tensor Memory")."""

Action = Callable[[], None]


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
    counts: Counts = field(default_factory=Counts)


class Block:
    """One block of a launch."""

    def __init__(self, launch: KernelLaunch, index: tuple[int, int, int]) -> None:
        self.launch, self.program = launch, launch.program
        self.num_threads = num = self.program.num_threads
        self.threads = np.arange(num)
        self.shared = CheckedMemory("shared memory", launch.shared_bytes, np.uint8, num)
        self.tensor = CheckedMemory("tensor memory", TENSOR_LANES * TENSOR_COLUMNS, np.uint32, num)
        self.tensor_columns: dict[int, int] = {}
        self.registers = {name: np.full(num, value) for name, value in self._constants(index).items()}
        self.registers["%tid.x"] = self.threads
        self._unset: dict[str, Array] = {}
        self.holes: dict[str, tuple[bool, ...]] = {}
        """Registers that were put together from parts of which some were unset, and which."""
        self.unfenced_registers: set[str] = set()
        """Registers written since the last wgmma.fence."""
        self.copies: list[list[Action]] = [[]]
        self.products: list[list[Action]] = [[]]
        """Groups of cp.async and of wgmma that are not waited for; the last is still open."""
        self.tensor_loads: list[Action] = []
        self.tensor_stores: list[Action] = []
        self.owed: dict[str, list[Action]] = {}
        """Registers that an asynchronous operation will set, and the list in which it stands."""
        self.barriers: dict[int, Any] = {}
        self.tensor_products: list[tuple[list[Flight], Action]] = []
        """Not yet committed."""

    def _constants(self, index: tuple[int, int, int]) -> dict[str, int]:
        grid: dict[str, int] = {}
        for axis, place, size in zip("xyz", index, self.launch.grid, strict=True):
            grid |= {f"%ctaid.{axis}": place, f"%nctaid.{axis}": size}
        return {**grid, "global_smem": 0, **self.launch.values, "%tid.y": 0, "%tid.z": 0, "%ntid.x": self.num_threads}

    def read(self, operand: Operand, kind: str, active: Array) -> Array:
        """Values of a register in all threads, or a constant.

        Raises:
            KernelError: an active thread never wrote it.
        """
        wanted = numpy_type(kind)
        if isinstance(operand, Literal):
            return _literal(operand, wanted)
        assert isinstance(operand, Register)
        values = self.registers.get(operand.name)
        if values is None or operand.name in self.holes or self.is_unset(operand, active):
            raise KernelError(f"register {operand.name} is read before it is set")
        if values.dtype.itemsize != wanted.itemsize or values.dtype == np.int64:
            values = values.astype(bool if wanted.kind == "b" else unsigned(wanted.itemsize))
        return values.view(wanted)

    def column(self, operand: Operand, kind: str, active: Array) -> Array:
        """As `read`, with one value a thread of a constant, too."""
        return np.broadcast_to(self.read(operand, kind, active), (self.num_threads,))

    def is_unset(self, operand: Operand, active: Array) -> bool:
        """Whether a register was not set in all active threads."""
        if not isinstance(operand, Register):
            return False
        unset = self._unset.get(operand.name)
        return operand.name not in self.registers or (unset is not None and bool((unset & active).any()))

    def write(self, operand: Operand, values: Array, active: Array) -> None:
        """Set a register in the active threads, extended to its width by the values' own sign (9.4.1)."""
        assert isinstance(operand, Register)
        name = operand.name
        if name == "_":
            return
        self._make(name)
        np.copyto(self.registers[name], as_bits(values), where=active, casting="unsafe")
        if name in self._unset:
            self._unset[name] &= ~active
            if not self._unset[name].any():
                del self._unset[name]
        self.holes.pop(name, None)
        self.unfenced_registers.add(name)

    def _make(self, name: str) -> None:
        if name not in self.registers:
            width = self.program.width(name)
            self.registers[name] = np.zeros(self.num_threads, bool if width == 1 else unsigned(width // 8))
            self._unset[name] = np.ones(self.num_threads, bool)

    def put_off(self, targets: Sequence[Operand], active: Array, queue: list[Action], action: Action) -> None:
        """Leave registers unset until an action that sets them, the next of a list, is waited for."""
        names = [target.name for target in targets if isinstance(target, Register)]
        for name in names:
            self._make(name)
            self._unset[name] = self._unset.get(name, False) | active
            self.owed[name] = queue

        def settle() -> None:
            for name in names:
                if self.owed.get(name) is queue:
                    del self.owed[name]
            action()

        queue.append(settle)

    def addresses(self, operand: Address, kind: str, active: Array) -> Array:
        """Addresses of the active threads."""
        values = self.column(operand.base, kind, active)
        return values[active].astype(np.int64) + operand.offset

    def one(self, operand: Operand, kind: str, active: Array) -> int:
        """A value that all active threads share."""
        if isinstance(operand, Address):
            return self.one(operand.base, kind, active) + operand.offset
        values = self.column(operand, kind, active)[active]
        if (values != values[0]).any():
            raise KernelError("threads that act as one disagree on an operand")
        return int(values[0])

    def single(self, active: Array) -> int:
        """The only active thread."""
        threads = self.threads[active]
        if len(threads) != 1:
            raise KernelError(f"{len(threads)} threads execute what one must")
        return int(threads[0])

    def drain(self) -> None:
        """The end of a block, by which everything must have been waited for."""
        left = [group for groups in (self.copies, self.products) for group in groups if group]
        left += [barrier for barrier in self.barriers.values() if barrier.actions]
        if left or self.tensor_loads or self.tensor_stores or self.tensor_columns:
            raise KernelError("the block ends before what it began has been waited for, or keeps tensor memory")


@cache
def _literal(operand: Literal, wanted: np.dtype[Any]) -> Array:
    if wanted.kind == "b":
        return np.array(operand.bits != 0)
    return np.array([operand.bits & (1 << 8 * wanted.itemsize) - 1], unsigned(wanted.itemsize)).view(wanted)[0]
