"""One instruction as some threads of a block execute it: how the families of instructions read and write."""

from functools import lru_cache

import numpy as np

from rlpheads.kernels.tools.ptx.block import Action, Block
from rlpheads.kernels.tools.ptx.checked_memory import KernelError
from rlpheads.kernels.tools.ptx.formats import TYPES, Array, as_bits
from rlpheads.kernels.tools.ptx.program import Address, Instruction, Operand, parts


class Step:
    """An instruction, the block and the threads."""

    def __init__(self, block: Block, instruction: Instruction, active: Array) -> None:
        self.block, self.instruction, self.active = block, instruction, active
        self.name, self.modifiers, self.operands = instruction.name, instruction.modifiers, instruction.operands

    @property
    def kind(self) -> str:
        """The last modifier, where most instructions have the type of their operands."""
        return self.modifiers[-1]

    @property
    def threads(self) -> Array:
        """Numbers of the active threads."""
        return self.block.threads[self.active]

    def read(self, source: Operand, kind: str = "") -> Array:
        """Values of a register, or a constant, in all threads.

        Raises:
            KernelError: an active thread never wrote it, or not as a whole.
        """
        values, unset = self.read_bits(source, kind or self.modifiers[-1])
        if unset is not None and (unset * self.active).any():
            raise KernelError(f"register {source} is read before it is set")
        return values

    def read_bits(self, source: Operand, kind: str) -> tuple[Array, Array | None]:
        """Values as they are, and which of their bits are not set, where any are not."""
        if isinstance(source, int):
            return _constant(source, kind, self.block.num_threads), None
        assert isinstance(source, str), self.instruction.text
        wanted, unset = TYPES[kind], self.block.unset.get(source)
        values = self.block.registers.get(source)
        if values is None:
            values, unset = self.block.make(source), self.block.unset[source]
        if values.itemsize != wanted.itemsize:
            values = values.astype(f"u{wanted.itemsize}")
        return values.view(wanted), unset

    def columns(self, source: Operand, kind: str = "") -> Array:
        """The registers of a vector in the active threads (T, N)."""
        return np.stack([self.read(part, kind) for part in parts(source)], 1)[self.active]

    def write(self, target: Operand, values: Array, unset: Array | None = None) -> None:
        """Set a register in the active threads, or all but some of its bits, extended by the values' own sign (9.4.1)."""
        assert isinstance(target, str), self.instruction.text
        if target == "_":
            return
        register, block = self.block.make(target), self.block
        np.copyto(register, as_bits(values), where=self.active, casting="unsafe")
        if unset is not None or target in block.unset:
            left = block.unset.setdefault(target, np.zeros_like(register))
            np.copyto(left, 0 if unset is None else unset, where=self.active, casting="unsafe")
            if not left.any():
                del block.unset[target]
        block.unfenced.add(target)

    def write_columns(self, target: Operand, values_TN: Array) -> None:
        """Set the registers of a vector to values of the active threads."""
        whole = np.zeros((self.block.num_threads, values_TN.shape[1]), values_TN.dtype)
        whole[self.active] = values_TN
        for part, column in zip(parts(target), whole.T, strict=True):
            self.write(part, np.ascontiguousarray(column))

    def write_later(self, target: Operand, queue: list[Action], action: Action) -> None:
        """Let an action set registers when its queue is waited for, which are unset until then; at once in the early mode."""
        block, names = self.block, [part for part in parts(target) if isinstance(part, str)]
        for name in names if block.launch.late else ():
            unset = block.unset.setdefault(name, np.zeros_like(block.make(name)))
            unset[self.active] = ~unset.dtype.type(0)
            block.owed[name] = queue

        def settle() -> None:
            for name in names:
                if block.owed.get(name) is queue:
                    del block.owed[name]
            action()

        block.later(queue, settle)

    def one(self, source: Operand, kind: str = "u32") -> int:
        """A value that all active threads share."""
        if isinstance(source, int):
            return source
        if isinstance(source, Address):
            return self.one(source.base, kind) + source.offset
        values = self.read(source, kind)[self.active]
        if (values != values[0]).any():
            raise KernelError("threads that act as one disagree on an operand")
        return int(values[0])

    def thread(self) -> Array:
        """The only active thread, of one place."""
        if len(self.threads) != 1:
            raise KernelError(f"{len(self.threads)} threads execute what one must")
        return self.threads

    def addresses(self, source: Operand, kind: str, size: int = 1) -> Array:
        """Addresses of the active threads, all multiples of a size."""
        assert isinstance(source, Address), self.instruction.text
        found = self.read(source.base, kind)[self.active].astype(np.int64) + source.offset
        if (found % size).any():
            space = "shared" if kind == "u32" else "global"
            raise KernelError(f"{space} address {int(found[found % size != 0][0])} is no multiple of {size}")
        return found

    def shared_cells(self, source: Operand, size: int) -> Array:
        """Bytes of shared memory that each active thread touches (T, size), from a multiple of the size on."""
        addresses, limit = self.addresses(source, "u32", size), self.block.launch.shared_bytes
        if (addresses < 0).any() or (addresses + size > limit).any():
            raise KernelError(f"cell {int(addresses.max())} lies outside the {limit} of shared memory")
        return (addresses + self.block.shared_start[self.active])[:, None] + np.arange(size)


@lru_cache(1024)
def _constant(bits: int, kind: str, num_threads: int) -> Array:
    if kind == "pred":
        return np.full(num_threads, bits != 0)
    kept = bits & (1 << 8 * TYPES[kind].itemsize) - 1
    return np.full(num_threads, kept, f"u{TYPES[kind].itemsize}").view(TYPES[kind])
