"""Tile sizes of the Triton kernels, by chip and by operand; imports no Triton."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

PREPARED_CHIPS = (80, 90, 100)
"""Compute capabilities with tiles of their own; another one takes those of the nearest below."""

FIRST_CLASSES = 256
"""Classes from which a row's shift is guessed."""

OVERSHOOT = {torch.bfloat16: 64.0, torch.float32: 64.0, torch.float16: 15.0}
"""Powers of two by which an exponential may exceed its row's first guess: a bfloat16 or float32 sum over 10^6 classes
stays finite, and so does a float16 exponential."""

NUM_STATE = 6
"""Numbers that a row carries from slab to slab: lift, Σe^{z−s}, its moment, Σz, largest logit before and after y."""

SLAB_BYTES = 32 * 2**20
"""Memory of the exponentials of one slab, where they are not all kept."""

SLAB_ROUNDING = 1024


@dataclass(frozen=True)
class Tiles:
    """How `class_tiles` cuts its work."""

    rows: int
    classes: int
    features: int
    warps: int
    stages: int
    tma: bool = False
    """Load features and weight by tensor-memory descriptors, where their rows start at multiples of 16 bytes."""
    registers: int | None = None
    """Most registers of a thread."""

    def __str__(self) -> str:
        rest = f"{self.warps} warps, {self.stages} stages"
        return f"{self.rows} × {self.classes} × {self.features}, {rest}{', TMA' if self.tma else ''}"


HALF_TILES = {
    80: (
        Tiles(128, 128, 32, warps=8, stages=4),
        Tiles(128, 128, 64, warps=8, stages=3),
        Tiles(64, 128, 64, warps=4, stages=3),
        Tiles(64, 256, 32, warps=8, stages=4),
    ),
    90: (
        Tiles(128, 128, 64, warps=8, stages=3, tma=True, registers=128),
        Tiles(128, 128, 64, warps=8, stages=4, tma=True),
        Tiles(64, 128, 64, warps=4, stages=4, tma=True),
        Tiles(64, 256, 64, warps=8, stages=3, tma=True),
    ),
    100: (
        Tiles(128, 128, 64, warps=8, stages=3, tma=True),
        Tiles(128, 128, 64, warps=8, stages=4, tma=True),
        Tiles(64, 128, 64, warps=4, stages=4, tma=True),
        Tiles(64, 256, 64, warps=8, stages=3, tma=True),
    ),
}
"""For bfloat16 and float16; the first of a chip unless others were measured. On sm_90 two blocks share a multiprocessor, so
that one's exponentials and reductions overlap the other's products; 128 x 256 spills on every chip."""

FLOAT_TILES = {
    80: (
        Tiles(128, 64, 32, warps=8, stages=3),
        Tiles(64, 64, 32, warps=4, stages=3),
        Tiles(64, 128, 32, warps=8, stages=3),
    ),
    **dict.fromkeys(
        (90, 100),
        (
            Tiles(128, 128, 32, warps=8, stages=3, tma=True),
            Tiles(128, 64, 32, warps=8, stages=4, tma=True),
            Tiles(64, 128, 32, warps=8, stages=3, tma=True),
        ),
    ),
}
"""For float32."""

INTERPRETED_TILES = (
    Tiles(128, 256, 256, warps=4, stages=1),
    Tiles(64, 256, 256, warps=4, stages=1),
    Tiles(64, 128, 128, warps=4, stages=1),
)


def chip_tiles(capability: int, dtype: torch.dtype, num_rows: int, *, rich: bool, bias: bool) -> tuple[Tiles, ...]:
    """Tiles for a compute capability (80, 90, …), the operands' dtype and a number of rows.

    The first are taken where none were measured, and `rlpheads.kernels.tools.tune` measures all. `rich`: with pairs, bases or
    moments, which like a bias take more registers. What spills was found by `rlpheads.kernels.tools.aot`; also that 16 warps on
    sm_100 fall back to the tensor instructions of sm_80.
    """
    chip = max((known for known in PREPARED_CHIPS if known <= capability), default=PREPARED_CHIPS[0])
    fitted = []
    for tiles in (FLOAT_TILES if dtype == torch.float32 else HALF_TILES)[chip]:
        if rich or bias or dtype == torch.float16:
            tiles = replace(tiles, registers=None)
        if bias and chip == 100:
            tiles = replace(tiles, rows=64)
        elif num_rows <= 64 < tiles.rows:
            tiles = replace(tiles, rows=64, warps=tiles.warps // 2)
        fitted.append(tiles)
    return tuple(dict.fromkeys(fitted))


class Wanted(NamedTuple):
    """What is asked of a pass over the classes."""

    products: bool
    """Exponentials times the weight."""
    moments: bool
    """Moments, and with products these times the weight (`entropy`)."""
    sum_logits: bool
    """Sums of the logits, and with products that of the weight (`uniform`)."""

    @property
    def based(self) -> bool:
        """Whether rows near chance store e^{z−s} − 1: for the two kinds whose gradient is what differs from chance."""
        return self.products and (self.moments or self.sum_logits)


class Plan(NamedTuple):
    """How a pass cuts the classes into slabs, and how many classes, from the first on, keep their exponentials."""

    num_slabs: int
    num_kept: int
    buffer_rows: int
    """Rows of a buffer of exponentials: with bases two rows of ones follow, and zeros up to a multiple of 8."""

    @property
    def buffer_classes(self) -> int:
        """Classes of the buffer of kept exponentials, padded so that its rows start at multiples of 128 bytes."""
        return -(-self.num_kept // 64) * 64


def plan_pass(num_rows: int, num_classes: int, itemsize: int, memory_budget: int | None, wanted: Wanted) -> Plan:
    """One slab if all exponentials may be kept or none is needed, else slabs of `slab_width`.

    `memory_budget` is None where no gradient of the classes will be asked for. Moments are never kept, so that their
    product with the weight takes slabs.
    """
    buffer_rows = -(-(num_rows + 2) // 8) * 8 if wanted.based else num_rows
    width = slab_width(num_rows, num_classes, itemsize)
    fitting = 0 if memory_budget is None else memory_budget // max(buffer_rows * itemsize, 1)
    num_kept = num_classes if fitting >= num_classes else fitting // width * width
    is_whole = num_kept == num_classes or (memory_budget is None and not wanted.products)
    num_slabs = 1 if is_whole and not (wanted.products and wanted.moments) else -(-num_classes // width)
    return Plan(num_slabs, 0 if memory_budget is None else num_kept, buffer_rows)


def slab_width(num_rows: int, num_classes: int, itemsize: int) -> int:
    """Classes of a slab, for a scratch buffer of SLAB_BYTES."""
    fitting = SLAB_BYTES // (max(num_rows, 1) * itemsize) // SLAB_ROUNDING * SLAB_ROUNDING
    return min(max(fitting, SLAB_ROUNDING), num_classes)


def slabs(num_slabs: int, num_rows: int, num_classes: int, itemsize: int) -> list[tuple[int, int]]:
    """(start, stop) of each slab: a single one is the whole range, several have `slab_width`."""
    width = num_classes if num_slabs == 1 else slab_width(num_rows, num_classes, itemsize)
    return [(start, min(start + width, num_classes)) for start in range(0, num_classes, width)]
