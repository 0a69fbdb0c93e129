"""Online softmax over tiles of classes on the CPU: the two local stages as operators.

The classes are streamed in tiles: logits, every reduction and the exponential, and at once the product with the tile's
weight (`tile_pass`, and in C++ `tile_native`, both beside this file). A tile's classes are its rows, W·Xᵀ, which
of the layouts is the fastest for all three products. A row's shift follows its running maximum, so logits of any size may
come in any order; each tile remembers the shift that its exponentials were taken with. What the memory budget allows of
the exponentials is kept for the weight's gradient, the rest is recomputed tile by tile.

Sums are float32 (float64 for float64 inputs): tiles of a narrower weight are widened one at a time, and its gradient is
rounded once, at the end. Both operators are opaque to FakeTensorMode and to torch.compile.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.cpu.tile_native import make_pass
from rlpheads.kernels.cpu.tile_pass import ClassSums, RowState, Tile
from rlpheads.kernels.cpu.workspace import WORKSPACE
from rlpheads.kernels.operators import register_named_operator
from rlpheads.kernels.rows.kernel import PassArguments
from rlpheads.kernels.rows.partials import (
    ClassRange,
    Exponentials,
    LogitGradient,
    Needs,
    Partials,
    Products,
    accumulation_dtype,
)

TILE_CLASSES = 16384
"""Classes of a tile at most: so many that a call's fixed costs are small. The cache is served by smaller chunks in C++."""

TILE_BYTES = 24 * 2**20
"""Bytes of a tile's logits at most, and of its widened weight: what bounds the extra memory, at any number of rows."""


def local_partials(
    features_BD: Tensor, head: ClassRange, labels_LB: Tensor, needs: Needs
) -> tuple[Partials, Products, Exponentials]:
    """First stage: reduce a class range to `Partials`, and keep what its own gradients need."""
    outputs = _partials_op(PassArguments(features_BD, head, labels_LB, needs))
    return Partials(*outputs[:-5]), Products(*outputs[-5:-2]), Exponentials(*outputs[-2:])


def local_class_gradients(
    features_BD: Tensor,
    head: ClassRange,
    labels_LB: Tensor,
    exponentials: Exponentials,
    gradient: LogitGradient,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Last stage: gradients of the range's weight and bias, each None unless wanted."""
    weight_gradient_KD, bias_gradient_K = _class_gradients_op(
        GradientArguments(features_BD, head, labels_LB, exponentials, gradient, *wanted)
    )
    return weight_gradient_KD if wanted[0] else None, bias_gradient_K if wanted[1] else None


def _num_kept_classes(needs: Needs, features_BD: Tensor, weight_KD: Tensor) -> int:
    """Count the classes, in whole tiles, whose exponentials fit the budget."""
    if not needs.class_gradients:
        return 0
    num_classes, itemsize = len(weight_KD), accumulation_dtype(features_BD, weight_KD).itemsize
    num_fitting = needs.memory_budget // max(len(features_BD) * itemsize, 1)
    width = _tile_classes(features_BD, weight_KD)
    return num_classes if num_fitting >= num_classes else num_fitting // width * width


def _tile_classes(features_BD: Tensor, weight_KD: Tensor) -> int:
    """Classes of a tile: fewer where its logits, or its widened weight, would take too much memory."""
    dtype = accumulation_dtype(features_BD, weight_KD)
    longest = max(features_BD.shape) if weight_KD.dtype != dtype else len(features_BD)
    fitting = TILE_BYTES // max(longest * dtype.itemsize, 1)
    return min(TILE_CLASSES, max(fitting // 64 * 64, 64))


class GradientTile(NamedTuple):
    """A tile of classes and dL/dz on it: a row's exponentials times its scale, and at the labels what is added there."""

    tile: Tile
    exp_KB: Tensor
    scale_B: Tensor
    label_N: Tensor
    """dL/dz at the tile's labels, in their order."""


class TiledHead:
    """Linear head of a class range on a batch, evaluated tile by tile in the accumulation dtype."""

    def __init__(
        self, features_BD: Tensor, weight_KD: Tensor, bias_K: Tensor | None, labels_LB: Tensor, num_kept: int = 0
    ) -> None:
        self.dtype = accumulation_dtype(features_BD, weight_KD)
        self.features_BD = features_BD.to(self.dtype)
        self.labels_LB = labels_LB.contiguous()
        self.tile_pass = make_pass(self.features_BD, self.labels_LB)
        self.num_kept = num_kept
        self.num_rows, self.num_classes = len(features_BD), len(weight_KD)
        self.tile_classes = _tile_classes(features_BD, weight_KD)
        self._weight_KD = weight_KD
        self._bias_K = None if bias_K is None else bias_K.to(self.dtype).contiguous()
        width = min(self.tile_classes, self.num_classes)
        self._scratch = WORKSPACE.empty((self.num_rows * width * (num_kept < self.num_classes),), self.dtype)
        self.widens = weight_KD.dtype != self.dtype
        self._wide = WORKSPACE.empty((width * self.widens, features_BD.shape[1]), self.dtype)

    @property
    def edges(self) -> list[int]:
        """Where the tiles begin, and where the last one ends."""
        return [*range(0, self.num_classes, self.tile_classes), self.num_classes]

    def tiles(self, edges: list[int]) -> Iterator[Tile]:
        """Cut the range into tiles; the labels are sorted once, so that each tile touches only its own."""
        sorted_labels, order = torch.sort(self.labels_LB.flatten(), stable=True)
        cuts = torch.searchsorted(sorted_labels, torch.tensor(edges)).tolist()
        for (start, stop), (first, last) in zip(pairwise(edges), pairwise(cuts), strict=True):
            slot_N = order[first:last]
            yield Tile(start, stop, slot_N, slot_N % self.num_rows, sorted_labels[first:last] - start)

    def bias(self, tile: Tile) -> Tensor | None:
        """Bias of the tile's classes."""
        return None if self._bias_K is None else self._bias_K[tile.start : tile.stop]

    def weight(self, tile: Tile) -> Tensor:
        """Weight of the tile's classes, contiguous, widened where it is narrower than the sums."""
        weight_KD = self._weight_KD[tile.start : tile.stop]
        return self.widened_buffer(tile).copy_(weight_KD) if self.widens else weight_KD.contiguous()

    def widened_buffer(self, tile: Tile) -> Tensor:
        """A buffer for the tile's weight, or its gradient, in the accumulation dtype."""
        return self._wide[: tile.stop - tile.start]

    def buffer(self, tile: Tile, kept_flat: Tensor) -> Tensor:
        """Buffer of the tile's exponentials: kept for backward, or scratch that the next tile overwrites."""
        if tile.stop <= self.num_kept:
            return tile.view(kept_flat, tile.start * self.num_rows, self.num_rows)
        return tile.view(self._scratch, 0, self.num_rows)

    def gradient_tiles(self, exponentials: Exponentials, gradient: LogitGradient) -> Iterator[GradientTile]:
        """Yield the tiles with what their gradients are made of; exponentials that were not kept are computed again."""
        exp_flat, tile_shift_CB, _ = exponentials
        for tile in self.tiles(self._merged_edges(tile_shift_CB)):
            exp_KB, number = self.buffer(tile, exp_flat), tile.start // self.tile_classes
            if tile.stop > self.num_kept:
                self.tile_pass.exponentiate(tile, self.weight(tile), self.bias(tile), exp_KB, tile_shift_CB[number])
            yield GradientTile(tile, exp_KB, gradient.scale_CB[number], gradient.label_LB.flatten()[tile.slot_N])

    def _merged_edges(self, tile_shift_CB: Tensor) -> list[int]:
        """Edges of the tiles for backward: neighbouring kept tiles with equal shifts are merged, for one product over them."""
        if self.widens:
            return self.edges
        moved = [True, *(tile_shift_CB[1:] != tile_shift_CB[:-1]).any(1).tolist()]
        starts = [
            start for start, is_moved in zip(self.edges, moved, strict=False) if is_moved or start >= self.num_kept
        ]
        return sorted({*starts, *([self.num_kept] if self.num_kept else []), self.num_classes})


@torch.autocast("cpu", enabled=False)
def partials_in_tiles(given: PassArguments) -> list[Tensor]:
    """Compute what the operator of the first stage returns."""
    features_BD, (weight_KD, bias_K, start, _), labels_LB, needs = given
    num_kept = _num_kept_classes(needs, features_BD, weight_KD)
    head = TiledHead(features_BD, weight_KD, bias_K, labels_LB - start, num_kept)
    state = RowState.start(labels_LB, head.dtype, moments=needs.moments)
    num_rows, num_features = features_BD.shape
    zeros = head.features_BD.new_zeros
    sums = ClassSums(
        zeros(num_rows if needs.feature_gradient else 0, num_features),
        zeros(num_rows if needs.feature_gradient and needs.moments else 0, num_features),
        zeros(num_features if needs.sum_logits else 0),
    )
    exp_flat = WORKSPACE.empty((num_rows * num_kept,), head.dtype)
    tile_shift_CB = zeros(len(head.edges) - 1, num_rows)
    for tile in head.tiles(head.edges):
        head.tile_pass.reduce(tile, head.weight(tile), head.bias(tile), head.buffer(tile, exp_flat), state, sums)
        tile_shift_CB[tile.start // head.tile_classes] = state.shift_B
    moment_B = state.moment_B if needs.moments else zeros(num_rows)
    sum_logits_B = zeros(num_rows)
    if needs.sum_logits:
        sum_logits_B += head.features_BD @ sums.weight_sum_D
        if bias_K is not None:
            sum_logits_B += bias_K.sum(dtype=head.dtype)
    return [state.shift_B, state.sum_B, moment_B, sum_logits_B, *state[3:], *sums, exp_flat, tile_shift_CB]


def shape_of_partials_in_tiles(given: PassArguments) -> list[Tensor]:
    """Return empty tensors like it."""
    features_BD, (weight_KD, *_), labels_LB, needs = given
    num_rows, num_features = features_BD.shape
    shapes = [(num_rows,)] * 4 + [tuple(labels_LB.shape)] + [(num_rows,)] * 2
    shapes += [
        (num_rows if flag else 0, num_features)
        for flag in (needs.feature_gradient, needs.feature_gradient and needs.moments)
    ]
    shapes += [
        (num_features if needs.sum_logits else 0,),
        (num_rows * _num_kept_classes(needs, features_BD, weight_KD),),
        (-(-len(weight_KD) // _tile_classes(features_BD, weight_KD)), num_rows),
    ]
    return [features_BD.new_empty(shape, dtype=accumulation_dtype(features_BD, weight_KD)) for shape in shapes]


class GradientArguments(NamedTuple):
    """What the operator of the last stage takes: the stage's own arguments."""

    features_BD: Tensor
    head: ClassRange
    labels_LB: Tensor
    exponentials: Exponentials
    gradient: LogitGradient
    for_weight: bool
    for_bias: bool


@torch.autocast("cpu", enabled=False)
def gradients_in_tiles(given: GradientArguments) -> tuple[Tensor, Tensor]:
    """Compute what the operator of the last stage returns: both gradients, empty where they are not wanted."""
    features_BD, (weight_KD, bias_K, start, _), labels_LB, exponentials, gradient, for_weight, for_bias = given
    num_rows, num_classes = len(features_BD), len(weight_KD)
    num_kept = exponentials.flat.numel() // max(num_rows, 1)
    head = TiledHead(features_BD, weight_KD, bias_K, labels_LB - start, num_kept)
    weight_gradient_KD = WORKSPACE.empty((num_classes if for_weight else 0, features_BD.shape[1]), weight_KD.dtype)
    bias_gradient_K = gradient.scale_CB.new_empty(num_classes if for_bias else 0)
    for tile, exp_KB, scale_B, label_N in head.gradient_tiles(exponentials, gradient):
        if for_weight:
            out_KD = weight_gradient_KD[tile.start : tile.stop]
            sum_KD = out_KD if out_KD.dtype == head.dtype else head.widened_buffer(tile)
            head.tile_pass.write_gradient(exp_KB, head.features_BD * scale_B[:, None], sum_KD)
            sum_KD.index_add_(0, tile.column_N, head.features_BD[tile.row_N] * label_N[:, None])
            out_KD.copy_(sum_KD)  # rounds a narrower weight's gradient; else it is itself
        if for_bias:
            sum_K = bias_gradient_K[tile.start : tile.stop]
            torch.mv(exp_KB, scale_B, out=sum_K)
            sum_K.index_add_(0, tile.column_N, label_N)
    bias_dtype = weight_KD.dtype if bias_K is None else bias_K.dtype
    return weight_gradient_KD, bias_gradient_K.to(bias_dtype)


def shape_of_gradients_in_tiles(given: GradientArguments) -> tuple[Tensor, Tensor]:
    """Return empty tensors like them."""
    weight_KD, num_features = given.head.weight_KD, given.features_BD.shape[1]
    weight_gradient_KD = weight_KD.new_empty(len(weight_KD) if given.for_weight else 0, num_features)
    bias = weight_KD if given.head.bias_K is None else given.head.bias_K
    return weight_gradient_KD, bias.new_empty(len(weight_KD) if given.for_bias else 0)


_partials_op = register_named_operator("tiled_cpu_partials", partials_in_tiles, shape_of_partials_in_tiles)
_class_gradients_op = register_named_operator(
    "tiled_cpu_class_gradients", gradients_in_tiles, shape_of_gradients_in_tiles
)
