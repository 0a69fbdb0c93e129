"""Tile sizes of the Triton kernels, by chip and by operand; imports no Triton."""

from dataclasses import dataclass, replace

import torch

KNOWN_CHIPS = (80, 90, 100)
"""Compute capabilities with tiles of their own; another one takes those of the nearest below."""

FIRST_CLASSES = 256
"""Classes from which a row's shift is guessed."""

OVERSHOOT = {torch.bfloat16: 64.0, torch.float32: 64.0, torch.float16: 15.0}
"""Powers of two by which an exponential may exceed its row's first guess: a bfloat16 or float32 sum over 10^6 classes
stays finite, and so does a float16 exponential."""


@dataclass(frozen=True)
class TileConfig:
    """Tile sizes, warps, pipeline stages and register limit of `class_tiles`: what `tune` chooses among."""

    rows: int
    classes: int
    features: int
    warps: int
    stages: int
    tma: bool = False
    """Load features and weight by tensor-memory descriptors, where their rows start at multiples of 16 bytes."""
    registers: int | None = None
    """Limit of registers a thread, to avoid spills or fit two blocks; None for the compiler's choice."""

    def __str__(self) -> str:
        rest = f"{self.warps} warps, {self.stages} stages"
        return f"{self.rows} × {self.classes} × {self.features}, {rest}{', TMA' if self.tma else ''}"


def without_descriptors(tiles: TileConfig) -> TileConfig:
    """The same for operands that no tensor-memory descriptor can describe, as their rows start at no multiple of 16 bytes.

    Addresses and masks then take registers that a limit, 128 rows or four warps would not leave.
    """
    return replace(tiles, tma=False, rows=min(tiles.rows, 64), warps=max(tiles.warps, 8), registers=None)


HALF_TILES = {
    80: (
        TileConfig(128, 128, 32, warps=8, stages=4),
        TileConfig(128, 128, 64, warps=8, stages=3),
        TileConfig(64, 128, 64, warps=4, stages=3),
        TileConfig(64, 256, 32, warps=8, stages=4),
    ),
    90: (
        TileConfig(128, 128, 64, warps=8, stages=3, tma=True, registers=128),
        TileConfig(128, 128, 64, warps=8, stages=4, tma=True),
        TileConfig(64, 128, 64, warps=4, stages=4, tma=True),
        TileConfig(64, 256, 64, warps=8, stages=3, tma=True),
    ),
    100: (
        TileConfig(128, 128, 64, warps=8, stages=3, tma=True),
        TileConfig(128, 128, 64, warps=8, stages=4, tma=True),
        TileConfig(64, 128, 64, warps=4, stages=4, tma=True),
        TileConfig(64, 256, 64, warps=8, stages=3, tma=True),
    ),
}
"""For bfloat16 and float16; the first of a chip unless others were measured. On sm_90 two blocks share a multiprocessor, so
that one's exponentials and reductions overlap the other's products; 128 x 256 spills on every chip."""

FLOAT_TILES = {
    80: (
        TileConfig(128, 64, 32, warps=8, stages=3),
        TileConfig(64, 64, 32, warps=4, stages=3),
        TileConfig(64, 128, 32, warps=8, stages=3),
    ),
    **dict.fromkeys(
        (90, 100),
        (
            TileConfig(128, 128, 32, warps=8, stages=3, tma=True),
            TileConfig(128, 64, 32, warps=8, stages=4, tma=True),
            TileConfig(64, 128, 32, warps=8, stages=3, tma=True),
        ),
    ),
}
"""For float32."""

INTERPRETED_TILES = (
    TileConfig(128, 256, 256, warps=4, stages=1),
    TileConfig(64, 256, 256, warps=4, stages=1),
    TileConfig(64, 128, 128, warps=4, stages=1),
)


def chip_tiles(
    capability: int, dtype: torch.dtype, num_rows: int, *, pair: bool = False, base: bool = False, bias: bool = False
) -> tuple[TileConfig, ...]:
    """Tiles for a compute capability (80, 90, …), the operands' dtype and a number of rows.

    The first are taken where none were measured, and `rlpheads.kernels.tools.tune` measures all. Pairs, bases or moments
    (`base`) and biases take registers. What spills was found by `rlpheads.kernels.tools.aot`; also that 16 warps on sm_100 fall
    back to the tensor instructions of sm_80.
    """
    chip = max((known for known in KNOWN_CHIPS if known <= capability), default=KNOWN_CHIPS[0])
    fitted = []
    for tiles in (FLOAT_TILES if dtype == torch.float32 else HALF_TILES)[chip]:
        if pair or base or dtype == torch.float16:
            tiles = replace(tiles, registers=None)
        if pair and base and bias and chip == 100:
            tiles = replace(tiles, rows=64)
        elif num_rows <= 64 < tiles.rows:
            tiles = replace(tiles, rows=64, warps=tiles.warps // 2, registers=None)
        fitted.append(tiles)
    return tuple(dict.fromkeys(fitted))
