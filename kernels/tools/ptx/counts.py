"""What a launch executes: instructions by kind, bytes of shared memory, bank conflicts, stores by size."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from rlpheads.kernels.tools.ptx.formats import Array
from rlpheads.kernels.tools.ptx.program import Instruction

KINDS = {
    "float": ("fma", "ex2", "sqrt", "div"),
    "choice": ("setp", "selp", "and", "or", "xor", "not"),
    "memory": ("ld", "st", "cp", "ldmatrix", "stmatrix", "prefetch"),
    "tensor": ("mma", "wgmma", "tcgen05"),
    "between threads": ("shfl", "redux", "bar", "mbarrier", "elect", "fence"),
    "control": ("bra", "brx", "ret"),
    "moves": ("mov", "cvt", "cvta"),
}
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}


@dataclass
class Counts:
    """Sums over the blocks that ran."""

    blocks: int = 0
    grid: int = 0
    """Blocks of the whole launch."""
    places: set[int] = field(default_factory=set)
    """Of the instructions that were issued, in the code."""
    instructions: Counter[str] = field(default_factory=Counter)
    """Thread-instructions by kind: 32 for each that a warp issues, whether its predicate holds or not."""
    stores: Counter[int] = field(default_factory=Counter)
    """Stores to global memory by a thread, by their bytes."""
    shared_bytes: int = 0
    """Read and written by threads, by copies and as operands of matrix products."""
    shared_passes: int = 0
    """Accesses of shared memory by a warp, each of as many passes as its busiest bank needs (32 banks of 4 bytes)."""
    least_passes: int = 0

    @property
    def scale(self) -> float:
        """Blocks of the grid for each that ran."""
        return self.grid / self.blocks

    @property
    def bank_conflicts(self) -> int:
        """Passes beyond the least that the bytes need."""
        return self.shared_passes - self.least_passes

    def issue(self, instruction: Instruction, place: int, num_warps: int) -> None:
        """Count an instruction of some warps; arithmetic by the type of its operands."""
        self.places.add(place)
        kind = _KIND_OF.get(instruction.name)
        if kind is None:
            kind = "float" if instruction.modifiers[-1].startswith(("f", "bf")) else "integer"
        self.instructions[kind] += 32 * num_warps

    def shared(self, cells_TN: Array, threads_T: Array) -> None:
        """Count an access of N bytes by each thread: 128 bytes a pass and warp at most."""
        size = cells_TN.shape[1]
        self.shared_bytes += cells_TN.size
        groups = threads_T // (32 // max(size * 32 // 128, 1))
        words = cells_TN[:, :1] // 4 + np.arange(max(size // 4, 1))
        key = np.unique((groups[:, None].astype(np.int64) << 32 | words).ravel())
        busy = np.bincount((key >> 32) * 32 + key % 32)
        busiest = np.pad(busy, (0, -len(busy) % 32)).reshape(-1, 32).max(1)
        self.shared_passes += int(busiest.sum())
        self.least_passes += len(np.unique(groups))
