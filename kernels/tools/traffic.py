"""Bytes that the GPU implementation moves to and from memory, by a model, against those that it cannot avoid.

The model counts what reaches the memory: a tile that the blocks running side by side share is read once, statistics and
label rows count as they are written and read again. Compulsory is every operand read and every result written once by each
of the three products: X, W and E; E, W and U; E, X and dW.
"""

from dataclasses import dataclass

from rlpheads.kernels.gpu.triton_tiles import FIRST_CLASSES, Tiles, Wanted, plan_pass

BLOCKS = 108
"""Blocks that run side by side on the smallest of the chips (sm_80), one a multiprocessor."""


@dataclass(frozen=True)
class Work:
    """One loss: its sizes, the bytes of an operand and of a number of the weight's gradient, and what is wanted."""

    rows: int
    features: int
    labels: int
    itemsize: int
    gradient_itemsize: int
    wanted: Wanted

    @property
    def exp_rows(self) -> int:
        """Rows of the exponentials' buffer."""
        return plan_pass(self.rows, self.labels, self.itemsize, None, self.wanted).buffer_rows


def compulsory_tiles(work: Work) -> int:
    """Of the pass over the logits: read X and W, write E (and the moments)."""
    operands = (work.rows + work.labels) * work.features
    return work.itemsize * (operands + work.rows * work.labels * (1 + work.wanted.moments))


def modelled_tiles(work: Work, tiles: Tiles) -> int:
    """The same as it is done: with the first guess, the tiles' statistics, and rows of ones."""
    row_tiles, class_tiles = -(-work.exp_rows // tiles.rows), -(-work.labels // tiles.classes)
    weight = (work.labels * -(-row_tiles // BLOCKS) + FIRST_CLASSES) * work.features
    exponentials = (work.exp_rows + work.rows * work.wanted.moments) * work.labels
    numbers = 2 + work.wanted.moments + work.wanted.sum_logits
    statistics = 4 * class_tiles * work.rows * (2 * numbers + 1)  # written, merged, and the maxima read by align_tiles
    return work.itemsize * (2 * work.rows * work.features + weight + exponentials) + statistics


def compulsory_products(work: Work) -> int:
    """Of the two products that follow: E and W to U (twice with moments), E and v∘x to the weight's gradient."""
    exponentials, weight = work.rows * work.labels * work.itemsize, work.labels * work.features
    forward = exponentials + weight * work.itemsize + 4 * work.rows * work.features
    backward = exponentials + work.rows * work.features * work.itemsize + weight * work.gradient_itemsize
    return forward * (1 + work.wanted.moments) + backward


def modelled_products(work: Work) -> int:
    """The same with rows of ones, v∘x written, and the labels' rows of the gradient read and written once more."""
    exponentials, weight = work.exp_rows * work.labels * work.itemsize, work.labels * work.features
    forward = exponentials + weight * work.itemsize + 4 * work.exp_rows * work.features
    scaled = 2 * work.exp_rows * work.features * work.itemsize
    label_rows = work.rows * work.features * (2 * work.gradient_itemsize + 2 * work.itemsize)
    backward = exponentials + scaled + weight * work.gradient_itemsize + label_rows
    return forward * (1 + work.wanted.moments) + backward
