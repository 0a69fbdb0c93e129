"""One instruction as some threads of a block execute it: how the families of instructions read and write."""

from functools import cache
from typing import Any

import numpy as np

from rlpheads.kernels.tools.ptx.block import Action, Block
from rlpheads.kernels.tools.ptx.checked_memory import KernelError
from rlpheads.kernels.tools.ptx.formats import TYPES, Array, as_bits
from rlpheads.kernels.tools.ptx.program import Address, Group, Instruction, Literal, Operand, Register


class Step:
    """An instruction, the block and the threads; an operand is named by its place or given."""

    def __init__(self, block: Block, instruction: Instruction, active: Array) -> None:
        self.block, self.active = block, active
        self.name, self.modifiers, self.operands = instruction.name, instruction.modifiers, instruction.operands
        self.instruction = instruction

    @property
    def kind(self) -> str:
        """The last modifier, where most instructions have the type of their operands."""
        return self.modifiers[-1]

    @property
    def threads(self) -> Array:
        """Numbers of the active threads."""
        return self.block.threads[self.active]

    def operand(self, source: int | Operand) -> Operand:
        """The operand at a place."""
        return self.operands[source] if isinstance(source, int) else source

    def parts(self, place: int) -> tuple[Operand, ...]:
        """The registers of a vector; one alone is a vector of one."""
        operand = self.operands[place]
        return operand.parts if isinstance(operand, Group) else (operand,)

    def address(self, place: int) -> Address:
        """An operand that must be an address."""
        operand = self.operands[place]
        assert isinstance(operand, Address), self.instruction.text
        return operand

    def read(self, source: int | Operand, kind: str = "") -> Array:
        """Values of a register in all threads, or a constant.

        Raises:
            KernelError: an active thread never wrote it.
        """
        operand, wanted = self.operand(source), TYPES[kind or self.modifiers[-1]]
        if isinstance(operand, Literal):
            return _literal(operand, wanted)
        assert isinstance(operand, Register), self.instruction.text
        values = self.block.registers.get(operand.name)
        if values is None or operand.name in self.block.holes or self.block.is_unset(operand, self.active):
            raise KernelError(f"register {operand.name} is read before it is set")
        if values.dtype.itemsize != wanted.itemsize or values.dtype == np.int64:
            values = values.astype(bool if wanted.kind == "b" else f"u{wanted.itemsize}")
        return values.view(wanted)

    def column(self, source: int | Operand, kind: str = "") -> Array:
        """As `read`, with one value a thread of a constant, too."""
        return np.broadcast_to(self.read(source, kind), (self.block.num_threads,))

    def columns(self, place: int, kind: str = "") -> Array:
        """The registers of a vector in the active threads (T, N)."""
        return np.stack([self.column(part, kind) for part in self.parts(place)], 1)[self.active]

    def write(self, target: int | Operand, values: Array) -> None:
        """Set a register in the active threads, extended to its width by the values' own sign (9.4.1)."""
        operand = self.operand(target)
        assert isinstance(operand, Register), self.instruction.text
        name, block = operand.name, self.block
        if name == "_":
            return
        np.copyto(block.make(name), as_bits(values), where=self.active, casting="unsafe")
        if name in block.unset:
            block.unset[name] &= ~self.active
            if not block.unset[name].any():
                del block.unset[name]
        block.holes.pop(name, None)
        block.unfenced.add(name)

    def write_columns(self, place: int, values_TN: Array) -> None:
        """Set the registers of a vector to values of the active threads."""
        whole = np.zeros((self.block.num_threads, values_TN.shape[1]), values_TN.dtype)
        whole[self.active] = values_TN
        for target, column in zip(self.parts(place), whole.T, strict=True):
            self.write(target, np.ascontiguousarray(column))

    def put_off(self, place: int, queue: list[Action], action: Action) -> None:
        """Leave registers unset until an action that sets them, the next of a list, is waited for."""
        block, names = self.block, [part.name for part in self.parts(place) if isinstance(part, Register)]
        for name in names:
            block.make(name)
            block.unset[name] = block.unset.get(name, False) | self.active
            block.owed[name] = queue

        def settle() -> None:
            for name in names:
                if block.owed.get(name) is queue:
                    del block.owed[name]
            action()

        queue.append(settle)

    def one(self, source: int | Operand, kind: str = "u32") -> int:
        """A value that all active threads share."""
        operand = self.operand(source)
        if isinstance(operand, Address):
            return self.one(operand.base, kind) + operand.offset
        values = self.column(operand, kind)[self.active]
        if (values != values[0]).any():
            raise KernelError("threads that act as one disagree on an operand")
        return int(values[0])

    def thread(self) -> Array:
        """The only active thread, of one place."""
        if len(self.threads) != 1:
            raise KernelError(f"{len(self.threads)} threads execute what one must")
        return self.threads

    def addresses(self, place: int, kind: str, size: int = 1) -> Array:
        """Addresses of the active threads, all multiples of a size."""
        address = self.address(place)
        found = self.column(address.base, kind)[self.active].astype(np.int64) + address.offset
        if (found % size).any():
            space = "shared" if kind == "u32" else "global"
            raise KernelError(f"{space} address {int(found[found % size != 0][0])} is no multiple of {size}")
        return found

    def shared_cells(self, place: int, size: int) -> Array:
        """Bytes of shared memory that each active thread touches (T, size), from a multiple of the size on."""
        addresses, limit = self.addresses(place, "u32", size), self.block.launch.shared_bytes
        if (addresses < 0).any() or (addresses + size > limit).any():
            raise KernelError(f"cell {int(addresses.max())} lies outside the {limit} of shared memory")
        return (addresses + self.block.shared_start[self.active])[:, None] + np.arange(size)


@cache
def _literal(operand: Literal, wanted: np.dtype[Any]) -> Array:
    if wanted.kind == "b":
        return np.array(operand.bits != 0)
    return np.array([operand.bits & (1 << 8 * wanted.itemsize) - 1], f"u{wanted.itemsize}").view(wanted)[0]
