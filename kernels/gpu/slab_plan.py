"""How a pass over the classes is cut into slabs, so that the exponentials stay within a memory budget; imports no Triton."""

from typing import NamedTuple

NUM_STATE = 6
"""Numbers that a row carries from slab to slab: lift, Σe^{z−s}, its moment, Σz, largest logit before and after y."""

SLAB_BYTES = 32 * 2**20
"""Memory of the exponentials of one slab, where they are not all kept."""

SLAB_ROUNDING = 1024

BUFFER_GROUP = 64
"""Classes to a multiple of which buffers of exponentials and moments are padded; beyond the last class nothing is read."""


class PassOutputs(NamedTuple):
    """Which sums a pass over the classes computes beside the softmax statistics."""

    products: bool
    """Exponentials times the weight."""
    moments: bool
    """Moments, and with products these times the weight (`entropy`)."""
    sum_logits: bool
    """Sums of the logits, and with products that of the weight (`uniform`)."""

    @classmethod
    def of(cls, regularizer: str | None, *, products: bool) -> "PassOutputs":
        """What a regularizer needs."""
        return cls(products, moments=regularizer == "entropy", sum_logits=regularizer == "uniform")

    @property
    def has_base(self) -> bool:
        """Whether rows near chance store e^{z−s} − 1: for the two kinds whose gradient is what differs from chance."""
        return self.products and (self.moments or self.sum_logits)


class SlabPlan(NamedTuple):
    """Number of slabs, and how many classes, from the first on, keep their exponentials for backward."""

    num_slabs: int
    num_kept: int
    buffer_rows: int
    """Rows of a buffer of exponentials: with bases two rows of ones follow, and zeros up to a multiple of 8."""

    @property
    def buffer_classes(self) -> int:
        """Classes of the buffer of kept exponentials, padded so that its rows start at multiples of 128 bytes."""
        return pad_classes(self.num_kept)


def pad_classes(num_classes: int) -> int:
    """Classes of a buffer for so many, so that its rows start at multiples of 128 bytes."""
    return -(-num_classes // BUFFER_GROUP) * BUFFER_GROUP


def plan_slabs(
    num_rows: int, num_classes: int, itemsize: int, memory_budget: int | None, outputs: PassOutputs
) -> SlabPlan:
    """One slab if all exponentials may be kept or none is needed, else slabs of `slab_width`.

    `memory_budget` is None where no gradient of the classes will be asked for. Moments are never kept, so that their
    product with the weight takes slabs.
    """
    buffer_rows = -(-(num_rows + 2) // 8) * 8 if outputs.has_base else num_rows
    width = slab_width(num_rows, num_classes, itemsize)
    fitting = 0 if memory_budget is None else memory_budget // max(buffer_rows * itemsize, 1)
    num_kept = num_classes if fitting >= num_classes else fitting // width * width
    is_whole = num_kept == num_classes or (memory_budget is None and not outputs.products)
    num_slabs = 1 if is_whole and not (outputs.products and outputs.moments) else -(-num_classes // width)
    return SlabPlan(num_slabs, 0 if memory_budget is None else num_kept, buffer_rows)


def slab_width(num_rows: int, num_classes: int, itemsize: int) -> int:
    """Classes of a slab, for a scratch buffer of SLAB_BYTES."""
    fitting = SLAB_BYTES // (max(num_rows, 1) * itemsize) // SLAB_ROUNDING * SLAB_ROUNDING
    return min(max(fitting, SLAB_ROUNDING), num_classes)


def slab_ranges(num_slabs: int, num_rows: int, num_classes: int, itemsize: int) -> list[tuple[int, int]]:
    """(start, stop) of each slab: a single one is the whole range, several have `slab_width`."""
    width = num_classes if num_slabs == 1 else slab_width(num_rows, num_classes, itemsize)
    return [(start, min(start + width, num_classes)) for start in range(0, num_classes, width)]
