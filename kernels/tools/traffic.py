"""Memory-traffic model of the GPU implementation: bytes moved, against the compulsory bytes.

The model counts what reaches the memory: a tile that the blocks running side by side share is read once, statistics and
label rows count as they are written and read again. The cast of the weight to the operands' dtype is counted by itself.
Compulsory is every operand read and every result written once by each of the three products: X, W and E; E, W and U; E, X and
dW.
"""

from dataclasses import dataclass

from rlpheads.kernels.gpu.slab_plan import PassOutputs, plan_slabs
from rlpheads.kernels.gpu.triton_tiles import FIRST_CLASSES, TileConfig

DEFAULT_BUDGET = 256 * 2**20
"""Bytes of exponentials that a head keeps unless its caller says otherwise."""

CONCURRENT_BLOCKS = 108
"""Blocks that run side by side on the smallest of the chips (sm_80), one a multiprocessor."""


@dataclass(frozen=True)
class Workload:
    """One loss: its sizes, the bytes of an operand and of a number of the weight and its gradient, and what is wanted."""

    rows: int
    features: int
    labels: int
    itemsize: int
    weight_itemsize: int
    outputs: PassOutputs

    @property
    def exp_rows(self) -> int:
        """Rows of the exponentials' buffer."""
        return plan_slabs(self.rows, self.labels, self.itemsize, None, self.outputs).buffer_rows


def compulsory_tile_bytes(load: Workload) -> int:
    """Compulsory bytes of the pass over the logits: read X and W, write E (and the moments)."""
    operands = (load.rows + load.labels) * load.features
    return load.itemsize * (operands + load.rows * load.labels * (1 + load.outputs.moments))


def modelled_tile_bytes(load: Workload, tiles: TileConfig) -> int:
    """Modelled bytes of that pass: with the first guess of the shifts, the tiles' statistics, and rows of ones."""
    row_tiles, class_tiles = -(-load.exp_rows // tiles.rows), -(-load.labels // tiles.classes)
    weight = (load.labels * -(-row_tiles // CONCURRENT_BLOCKS) + FIRST_CLASSES) * load.features
    exponentials = (load.exp_rows + load.rows * load.outputs.moments) * load.labels
    numbers = 2 + load.outputs.moments + load.outputs.sum_logits
    statistics = 4 * class_tiles * load.rows * (2 * numbers + 1)  # written, merged, and the maxima read by align_tiles
    return load.itemsize * (2 * load.rows * load.features + weight + exponentials) + statistics


def compulsory_product_bytes(load: Workload) -> int:
    """Compulsory bytes of the two products: E and W to U (twice with moments), E and v∘x to the weight's gradient."""
    exponentials, weight = load.rows * load.labels * load.itemsize, load.labels * load.features
    forward = exponentials + weight * load.itemsize + 4 * load.rows * load.features
    backward = exponentials + load.rows * load.features * load.itemsize + weight * load.weight_itemsize
    return forward * (1 + load.outputs.moments) + backward


def modelled_product_bytes(load: Workload) -> int:
    """Modelled bytes of them: also rows of ones, v∘x written, and the labels' rows of the gradient read and written again."""
    exponentials, weight = load.exp_rows * load.labels * load.itemsize, load.labels * load.features
    forward = exponentials + weight * load.itemsize + 4 * load.exp_rows * load.features
    scaled = 2 * load.exp_rows * load.features * load.itemsize
    label_rows = load.rows * load.features * (2 * load.weight_itemsize + 2 * load.itemsize)
    backward = exponentials + scaled + weight * load.weight_itemsize + label_rows
    return forward * (1 + load.outputs.moments) + backward


def cast_bytes(load: Workload, passes_a_version: int | None = None) -> int:
    """Bytes of the weight's casts in a forward pass: read as it is stored, written as an operand; 0 if it is one already.

    Where the operand is kept (`rlpheads.kernels.gpu.heads.kept_operands`) it is cast once for so many passes of one version of
    the weight, the micro-batches of a step or the batches of an evaluation. Else a pass in one slab casts once; in several it
    casts each slab, for `entropy` twice, and the first classes. Backward casts again what was not kept, which is not counted.
    """
    if load.weight_itemsize == load.itemsize:
        return 0
    cast = load.features * (load.weight_itemsize + load.itemsize)
    if passes_a_version is not None:
        return load.labels * cast // passes_a_version
    if plan_slabs(load.rows, load.labels, load.itemsize, DEFAULT_BUDGET, load.outputs).num_slabs == 1:
        return load.labels * cast
    return ((1 + (load.outputs.products and load.outputs.moments)) * load.labels + FIRST_CLASSES) * cast
