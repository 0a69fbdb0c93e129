"""Class-tiled softmax statistics and weight gradients on the CPU: the local stages as two operators.

The classes are streamed in tiles small enough to stay in the cache: logits by one matrix product, then every reduction
and the exponential in place, and at once the product with the tile's weight. A row's shift follows its running maximum,
so logits of any size may come in any order; each tile remembers the shift that its exponentials were taken with. What
the memory budget allows of the exponentials is kept for the weight's gradient, the rest is recomputed tile by tile.

Sums are float32 (float64 for float64 inputs): tiles of a narrower weight are widened one at a time, and its gradient is
rounded once, at the end. Both operators are opaque to FakeTensorMode and to torch.compile.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.partials import (
    NO_CLASS_SHIFT,
    ClassRange,
    Exponentials,
    LogitGradient,
    Needs,
    Partials,
    Products,
    accumulation_dtype,
)

TILE_CLASSES = 8192
"""Classes of a tile: few enough for its logits to stay in the cache, enough for its matrix products to be efficient."""


def local_partials(
    features_BD: Tensor, head: ClassRange, labels_LB: Tensor, needs: Needs
) -> tuple[Partials, Products, Exponentials]:
    """First stage: reduce a class range to `Partials`, and keep what its own gradients need."""
    dtype = accumulation_dtype(features_BD, head.weight_KD)
    outputs = _partials_op(
        features_BD,
        head.weight_KD,
        head.bias_K,
        labels_LB,
        head.start,
        _num_kept(needs, len(features_BD), len(head.weight_KD), dtype.itemsize),
        needs.feature_gradient,
        needs.regularizer == "entropy",
        needs.regularizer == "uniform",
    )
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
        features_BD, head.weight_KD, head.bias_K, labels_LB, head.start, *exponentials[:2], *gradient, *wanted
    )
    return weight_gradient_KD if wanted[0] else None, bias_gradient_K if wanted[1] else None


def _num_kept(needs: Needs, num_rows: int, num_classes: int, itemsize: int) -> int:
    """Count the classes, in whole tiles, whose exponentials fit the budget."""
    if not needs.class_gradients:
        return 0
    num_fitting = needs.memory_budget // max(num_rows * itemsize, 1)
    return num_classes if num_fitting >= num_classes else num_fitting // TILE_CLASSES * TILE_CLASSES


def _num_tiles(num_classes: int) -> int:
    return -(-num_classes // TILE_CLASSES)


class _Tile(NamedTuple):
    """One tile of classes, and the N labels that fall into it."""

    number: int
    start: int
    stop: int
    slot_N: Tensor
    """Positions of those labels in the flattened (L, B) labels."""
    row_N: Tensor
    column_N: Tensor
    """Their classes, counted from the tile's start."""

    def fill_labels(self, tile_BK: Tensor, value: float) -> None:
        """Set the labels' own entries."""
        tile_BK[self.row_N, self.column_N] = value

    def view(self, flat: Tensor, offset: int, num_rows: int) -> Tensor:
        """The (B, classes of the tile) block of a flat buffer that begins at `offset`."""
        width = self.stop - self.start
        return flat[offset : offset + num_rows * width].view(num_rows, width)


def _tiles(num_classes: int, range_start: int, labels_LB: Tensor) -> Iterator[_Tile]:
    """Cut a class range into tiles; the labels are sorted once, so that each tile touches only its own."""
    sorted_labels, order = torch.sort(labels_LB.flatten() - range_start, stable=True)
    edges = [*range(0, num_classes, TILE_CLASSES), num_classes]
    cuts = torch.searchsorted(sorted_labels, torch.tensor(edges)).tolist()
    for number, (start, stop) in enumerate(pairwise(edges)):
        slot_N = order[cuts[number] : cuts[number + 1]]
        column_N = sorted_labels[cuts[number] : cuts[number + 1]] - start
        yield _Tile(number, start, stop, slot_N, slot_N % labels_LB.shape[1], column_N)


class _Head:
    """Linear head of a class range, evaluated a tile at a time in the accumulation dtype."""

    def __init__(self, features_BD: Tensor, weight_KD: Tensor, bias_K: Tensor | None, num_kept: int = 0) -> None:
        self.features_BD = features_BD.to(accumulation_dtype(features_BD, weight_KD))
        self.num_kept = num_kept
        self._weight_KD = weight_KD
        self._bias_K = bias_K
        width = min(TILE_CLASSES, len(weight_KD)) if num_kept < len(weight_KD) else 0
        self._scratch = self.features_BD.new_empty(len(features_BD) * width)

    def weight(self, tile: _Tile) -> Tensor:
        """Weight of the tile's classes."""
        return self._weight_KD[tile.start : tile.stop].to(self.features_BD.dtype)

    def buffer(self, tile: _Tile, kept_flat: Tensor) -> Tensor:
        """The tile's place among the kept ones, or else the scratch buffer that the next tile overwrites."""
        num_rows = len(self.features_BD)
        if tile.stop <= self.num_kept:
            return tile.view(kept_flat, tile.start * num_rows, num_rows)
        return tile.view(self._scratch, 0, num_rows)

    def write_logits(self, tile: _Tile, weight_KD: Tensor, out_BK: Tensor) -> None:
        """Write the logits X Wᵀ + b."""
        torch.mm(self.features_BD, weight_KD.T, out=out_BK)
        if self._bias_K is not None:
            out_BK.add_(self._bias_K[tile.start : tile.stop])


class _Sums:
    """Running statistics of the rows over the tiles seen so far, and the products with the weight where wanted."""

    def __init__(
        self, features_BD: Tensor, labels_LB: Tensor, num_tiles: int, *, products: bool, moments: bool
    ) -> None:
        num_rows, num_features = features_BD.shape
        empty, full = features_BD.new_empty, features_BD.new_full
        self.label_logit_LB = full(labels_LB.shape, -torch.inf)
        self.own_before_B = full((num_rows,), -torch.inf)
        self.own_after_B = full((num_rows,), -torch.inf)
        self.tile_max_CB = empty(num_tiles, num_rows)
        self.tile_shift_CB = empty(num_tiles, num_rows)
        self.shift_B = full((num_rows,), NO_CLASS_SHIFT)
        self.sum_B = full((num_rows,), 0)
        self.moment_B = full((num_rows,), 0)
        self.exp_weight_BD = full((num_rows * products, num_features), 0)
        self.moment_weight_BD = full((num_rows * (products and moments), num_features), 0)
        self._products = products

    def take_labels(self, tile: _Tile, logits_BK: Tensor) -> None:
        """Read the labels' logits, then set them to −inf, so that only the other classes are left."""
        if len(tile.slot_N) == 0:
            return
        self.label_logit_LB.view(-1)[tile.slot_N] = logits_BK[tile.row_N, tile.column_N]
        tile.fill_labels(logits_BK, -torch.inf)
        is_first_N = tile.slot_N < len(logits_BK)
        row_N, column_N = tile.row_N[is_first_N], tile.column_N[is_first_N]
        top_N, argmax_N = logits_BK[row_N].max(1)
        self.own_before_B[row_N] = top_N.masked_fill(argmax_N > column_N, -torch.inf)
        self.own_after_B[row_N] = top_N.masked_fill(argmax_N < column_N, -torch.inf)

    def raise_shift(self, tile: _Tile, logits_BK: Tensor) -> None:
        """Let the shift follow the maximum, and bring the sums over the earlier tiles to the new one."""
        tile_max_B = torch.amax(logits_BK, 1, out=self.tile_max_CB[tile.number])
        shift_B = torch.maximum(self.shift_B, tile_max_B)
        drop_B = self.shift_B - shift_B
        factor_B = drop_B.exp()
        self.moment_B = factor_B * (self.moment_B + drop_B * self.sum_B)
        self.sum_B = factor_B * self.sum_B
        if len(self.moment_weight_BD):
            self.moment_weight_BD.addcmul_(self.exp_weight_BD, drop_B[:, None]).mul_(factor_B[:, None])
        if self._products:
            self.exp_weight_BD.mul_(factor_B[:, None])
        self.shift_B = shift_B
        self.tile_shift_CB[tile.number] = shift_B

    def add(self, exp_BK: Tensor, weight_KD: Tensor) -> None:
        """Add a tile's exponentials."""
        self.sum_B += exp_BK.sum(1)
        if self._products:
            self.exp_weight_BD.addmm_(exp_BK, weight_KD)

    def add_moments(self, moment_BK: Tensor, weight_KD: Tensor) -> None:
        """Add a tile's exponentials times their exponents."""
        self.moment_B += moment_BK.sum(1)
        if self._products:
            self.moment_weight_BD.addmm_(moment_BK, weight_KD)

    def maxima(self, first_label_B: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Largest other logit below and above the first label, which is counted from the range's start."""
        num_tiles = len(self.tile_max_CB)
        tile_C1 = torch.arange(num_tiles)[:, None]
        label_tile_B = first_label_B.div(TILE_CLASSES, rounding_mode="floor")
        label_tile_B.masked_fill_(first_label_B >= num_classes, num_tiles)  # beyond the end of a ragged last tile
        before_B = self.tile_max_CB.masked_fill(tile_C1 >= label_tile_B, -torch.inf).amax(0)
        after_B = self.tile_max_CB.masked_fill(tile_C1 <= label_tile_B, -torch.inf).amax(0)
        return torch.maximum(before_B, self.own_before_B), torch.maximum(after_B, self.own_after_B)


@torch.library.custom_op("rlpheads::tiled_cpu_partials", mutates_args=(), device_types="cpu")
@torch.autocast("cpu", enabled=False)
def _partials_op(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    num_kept: int,
    products: bool,
    moments: bool,
    weight_sum: bool,
) -> list[Tensor]:
    head = _Head(features_BD, weight_KD, bias_K, num_kept)
    num_rows, num_classes = len(features_BD), len(weight_KD)
    sums = _Sums(head.features_BD, labels_LB, _num_tiles(num_classes), products=products, moments=moments)
    exp_flat = head.features_BD.new_empty(num_rows * num_kept)
    weight_sum_D = head.features_BD.new_zeros(features_BD.shape[1] * weight_sum)
    for tile in _tiles(num_classes, start, labels_LB):
        tile_weight_KD = head.weight(tile)
        tile_BK = head.buffer(tile, exp_flat)
        head.write_logits(tile, tile_weight_KD, tile_BK)
        sums.take_labels(tile, tile_BK)
        sums.raise_shift(tile, tile_BK)
        tile_BK.sub_(sums.shift_B[:, None])
        exponent_BK = tile_BK.clone() if moments else None
        sums.add(tile_BK.exp_(), tile_weight_KD)
        if exponent_BK is not None:
            tile.fill_labels(exponent_BK, 0.0)  # 0·(−inf) is not 0
            sums.add_moments(exponent_BK.mul_(tile_BK), tile_weight_KD)
        if weight_sum:
            weight_sum_D += tile_weight_KD.sum(0)
    sum_logits_B = torch.zeros_like(sums.sum_B)
    if weight_sum:
        sum_logits_B = head.features_BD @ weight_sum_D
        if bias_K is not None:
            sum_logits_B += bias_K.sum(dtype=weight_sum_D.dtype)
    partials = [sums.shift_B, sums.sum_B, sums.moment_B, sum_logits_B, sums.label_logit_LB]
    partials.extend(sums.maxima(labels_LB[0] - start, num_classes))
    return [*partials, sums.exp_weight_BD, sums.moment_weight_BD, weight_sum_D, exp_flat, sums.tile_shift_CB]


@_partials_op.register_fake
def _(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    num_kept: int,
    products: bool,
    moments: bool,
    weight_sum: bool,
) -> list[Tensor]:
    num_rows, num_features = features_BD.shape
    dtype = accumulation_dtype(features_BD, weight_KD)
    shapes = [(num_rows,)] * 4 + [tuple(labels_LB.shape)] + [(num_rows,)] * 2
    shapes += [(num_rows * products, num_features), (num_rows * (products and moments), num_features)]
    shapes += [(num_features * weight_sum,), (num_rows * num_kept,), (_num_tiles(len(weight_KD)), num_rows)]
    return [features_BD.new_empty(shape, dtype=dtype) for shape in shapes]


@torch.library.custom_op("rlpheads::tiled_cpu_class_gradients", mutates_args=(), device_types="cpu")
@torch.autocast("cpu", enabled=False)
def _class_gradients_op(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    exp_flat: Tensor,
    tile_shift_CB: Tensor,
    scale_CB: Tensor,
    label_LB: Tensor,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor]:
    num_rows, num_classes = len(features_BD), len(weight_KD)
    head = _Head(features_BD, weight_KD, bias_K, num_kept=exp_flat.numel() // max(num_rows, 1))
    weight_gradient_KD = weight_KD.new_empty(num_classes * for_weight, features_BD.shape[1])
    bias_gradient_K = scale_CB.new_empty(num_classes * for_bias)
    for tile in _tiles(num_classes, start, labels_LB):
        exp_BK = head.buffer(tile, exp_flat)
        if tile.stop > head.num_kept:
            head.write_logits(tile, head.weight(tile), exp_BK)
            tile.fill_labels(exp_BK, -torch.inf)
            exp_BK.sub_(tile_shift_CB[tile.number][:, None]).exp_()
        scale_B, label_N = scale_CB[tile.number], label_LB.flatten()[tile.slot_N]
        if for_weight:
            out_KD = weight_gradient_KD[tile.start : tile.stop]
            sum_KD = out_KD if out_KD.dtype == scale_B.dtype else exp_BK.new_empty(out_KD.shape)
            torch.mm(exp_BK.T, head.features_BD * scale_B[:, None], out=sum_KD)
            sum_KD.index_add_(0, tile.column_N, head.features_BD[tile.row_N] * label_N[:, None])
            out_KD.copy_(sum_KD)  # rounds a narrower weight's gradient; else it is itself
        if for_bias:
            sum_K = bias_gradient_K[tile.start : tile.stop]
            torch.mv(exp_BK.T, scale_B, out=sum_K)
            sum_K.index_add_(0, tile.column_N, label_N)
    bias_dtype = weight_KD.dtype if bias_K is None else bias_K.dtype
    return weight_gradient_KD, bias_gradient_K.to(bias_dtype)


@_class_gradients_op.register_fake
def _(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    exp_flat: Tensor,
    tile_shift_CB: Tensor,
    scale_CB: Tensor,
    label_LB: Tensor,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor]:
    weight_gradient_KD = weight_KD.new_empty(len(weight_KD) * for_weight, features_BD.shape[1])
    bias = weight_KD if bias_K is None else bias_K
    return weight_gradient_KD, bias.new_empty(len(weight_KD) * for_bias)
