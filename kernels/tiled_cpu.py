"""Class-tiled softmax statistics and weight gradients on the CPU, in two operators.

The classes are streamed in tiles small enough to stay in the cache: logits by one matrix product, then every reduction,
the exponential in place, and at once the product with the tile's weight. The row's shift follows the running maximum,
so a row may meet any logits in any order; each tile remembers the shift that its exponentials were taken with. What the
memory budget allows of the exponentials is kept for the weight's gradient, the rest is recomputed tile by tile.

Both operators are opaque to FakeTensorMode and torch.compile. Sums are float32 (float64 for float64 inputs): tiles of a
narrower weight are widened one at a time, and its gradient is rounded once, at the end.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.partials import NO_CLASS_SHIFT, ClassRange, Needs, Partials, Residuals, accumulation_dtype

TILE_CLASSES = 4096


class _Tile(NamedTuple):
    """One tile of classes with the labels that fall into it."""

    index: int
    start: int
    stop: int
    slots: Tensor
    """Positions of those labels in the flattened (L, B) labels."""
    rows: Tensor
    columns: Tensor
    """Their classes, counted from the tile's start."""


def _num_tiles(num_classes: int) -> int:
    return -(-num_classes // TILE_CLASSES)


def _tiles(num_classes: int, range_start: int, labels_LB: Tensor) -> Iterator[_Tile]:
    """Cut a class range into tiles; the labels are sorted once so that each tile touches only its own."""
    sorted_labels, order = torch.sort(labels_LB.flatten() - range_start, stable=True)
    edges = [*range(0, num_classes, TILE_CLASSES), num_classes]
    cuts = torch.searchsorted(sorted_labels, torch.tensor(edges)).tolist()
    for index, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        slots = order[cuts[index] : cuts[index + 1]]
        columns = sorted_labels[cuts[index] : cuts[index + 1]] - start
        yield _Tile(index, start, stop, slots, slots % labels_LB.shape[1], columns)


class _Logits:
    """Makes a tile's logits, and widens its weight, into buffers that all tiles share."""

    def __init__(self, features_BD: Tensor, weight_KD: Tensor, bias_K: Tensor | None) -> None:
        self.dtype = accumulation_dtype(features_BD, weight_KD)
        self.features_BD = features_BD.to(self.dtype)
        self._weight_KD = weight_KD
        self._bias_K = bias_K
        self._buffer: Tensor | None = None

    def weight(self, tile: _Tile) -> Tensor:
        """Weight of the tile's classes in the accumulation dtype."""
        return self._weight_KD[tile.start : tile.stop].to(self.dtype)

    def buffer(self, tile: _Tile) -> Tensor:
        """A (B, classes) buffer that the next tile will overwrite."""
        num_rows, width = len(self.features_BD), tile.stop - tile.start
        if self._buffer is None:  # the first tile is the widest
            self._buffer = self.features_BD.new_empty(num_rows * width)
        return self._buffer[: num_rows * width].view(num_rows, width)

    def write(self, tile: _Tile, weight_KD: Tensor, out_BK: Tensor) -> None:
        """out = X Wᵀ + b."""
        torch.mm(self.features_BD, weight_KD.T, out=out_BK)
        if self._bias_K is not None:
            out_BK.add_(self._bias_K[tile.start : tile.stop])


class _Sums:
    """Running statistics of the rows over the tiles seen so far, and the products with the weight where wanted."""

    def __init__(self, features_BD: Tensor, labels_LB: Tensor, num_tiles: int, *, products: bool, moments: bool) -> None:
        num_rows = len(features_BD)
        self.label_logit_LB = features_BD.new_full(labels_LB.shape, -torch.inf)
        self.before_B = features_BD.new_full((num_rows,), -torch.inf)
        self.after_B = self.before_B.clone()
        self.tile_max_CB = features_BD.new_empty(num_tiles, num_rows)
        self.tile_shift_CB = features_BD.new_empty(num_tiles, num_rows)
        self.shift_B = features_BD.new_full((num_rows,), NO_CLASS_SHIFT)
        self.sum_B = features_BD.new_zeros(num_rows)
        self.moment_B = features_BD.new_zeros(num_rows)
        self.exp_weight_BD = torch.zeros_like(features_BD) if products else None
        self.moment_weight_BD = torch.zeros_like(features_BD) if products and moments else None

    def take_labels(self, tile: _Tile, logits_BK: Tensor) -> None:
        """Read the labels' logits, then set them to −inf: only the other classes are left."""
        if len(tile.slots) == 0:
            return
        self.label_logit_LB.view(-1)[tile.slots] = logits_BK[tile.rows, tile.columns]
        logits_BK[tile.rows, tile.columns] = -torch.inf
        is_first = tile.slots < len(logits_BK)
        rows, columns = tile.rows[is_first], tile.columns[is_first]
        top_N, argmax_N = logits_BK[rows].max(1)
        self.before_B[rows] = top_N.masked_fill(argmax_N > columns, -torch.inf)
        self.after_B[rows] = top_N.masked_fill(argmax_N < columns, -torch.inf)

    def raise_shift(self, tile: _Tile, logits_BK: Tensor) -> None:
        """Let the shift follow the maximum, and bring the sums over earlier tiles to the new one."""
        torch.amax(logits_BK, 1, out=self.tile_max_CB[tile.index])
        shift_B = torch.maximum(self.shift_B, self.tile_max_CB[tile.index])
        drop_B = self.shift_B - shift_B
        factor_B = drop_B.exp()
        self.moment_B = factor_B * (self.moment_B + drop_B * self.sum_B)
        self.sum_B = factor_B * self.sum_B
        if self.moment_weight_BD is not None and self.exp_weight_BD is not None:
            self.moment_weight_BD.addcmul_(self.exp_weight_BD, drop_B[:, None]).mul_(factor_B[:, None])
        if self.exp_weight_BD is not None:
            self.exp_weight_BD.mul_(factor_B[:, None])
        self.shift_B = shift_B
        self.tile_shift_CB[tile.index] = shift_B

    def add(self, exp_BK: Tensor, weight_KD: Tensor) -> None:
        """Add a tile's exponentials, 0 at the labels."""
        self.sum_B += exp_BK.sum(1)
        if self.exp_weight_BD is not None:
            self.exp_weight_BD.addmm_(exp_BK, weight_KD)

    def add_moments(self, moment_BK: Tensor, weight_KD: Tensor) -> None:
        """Add a tile's exponentials times their exponents, 0 at the labels."""
        self.moment_B += moment_BK.sum(1)
        if self.moment_weight_BD is not None:
            self.moment_weight_BD.addmm_(moment_BK, weight_KD)

    def maxima(self, first_label_B: Tensor) -> tuple[Tensor, Tensor]:
        """Largest other logit below and above the first label, which is counted from the range's start."""
        label_tile_B = first_label_B.div(TILE_CLASSES, rounding_mode="floor")
        tile_C1 = torch.arange(len(self.tile_max_CB))[:, None]
        before_B = self.tile_max_CB.masked_fill(tile_C1 >= label_tile_B, -torch.inf).amax(0)
        after_B = self.tile_max_CB.masked_fill(tile_C1 <= label_tile_B, -torch.inf).amax(0)
        return torch.maximum(before_B, self.before_B), torch.maximum(after_B, self.after_B)


@torch.library.custom_op("rlpheads::tiled_cpu_partials", mutates_args=(), device_types="cpu")
def _partials_op(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    num_kept: int,
    products: bool,
    moments: bool,
) -> list[Tensor]:
    with torch.autocast("cpu", enabled=False):
        logits = _Logits(features_BD, weight_KD, bias_K)
        num_rows, num_classes = len(features_BD), len(weight_KD)
        sums = _Sums(logits.features_BD, labels_LB, _num_tiles(num_classes), products=products, moments=moments)
        exp_flat = logits.features_BD.new_empty(num_rows * num_kept)
        for tile in _tiles(num_classes, start, labels_LB):
            tile_weight_KD = logits.weight(tile)
            tile_BK = _kept(exp_flat, tile, num_rows) if tile.stop <= num_kept else logits.buffer(tile)
            logits.write(tile, tile_weight_KD, tile_BK)
            sums.take_labels(tile, tile_BK)
            sums.raise_shift(tile, tile_BK)
            tile_BK.sub_(sums.shift_B[:, None])
            exponent_BK = tile_BK.clone() if moments else None
            sums.add(tile_BK.exp_(), tile_weight_KD)
            if exponent_BK is not None:
                exponent_BK[tile.rows, tile.columns] = 0
                sums.add_moments(exponent_BK.mul_(tile_BK), tile_weight_KD)
        before_B, after_B = sums.maxima(labels_LB[0] - start)
    partials = [sums.shift_B, sums.sum_B, sums.moment_B, sums.label_logit_LB, before_B, after_B]
    return [*partials, exp_flat, sums.tile_shift_CB, sums.exp_weight_BD, sums.moment_weight_BD]


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
) -> list[Tensor]:
    num_rows, num_features = features_BD.shape
    empty = features_BD.new_empty
    dtype = accumulation_dtype(features_BD, weight_KD)
    row_shapes = [(num_rows,)] * 3 + [tuple(labels_LB.shape)] + [(num_rows,)] * 2
    kept_shapes = [(num_rows * num_kept,), (_num_tiles(len(weight_KD)), num_rows)]
    product_shapes = [(num_rows * products, num_features), (num_rows * (products and moments), num_features)]
    return [empty(shape, dtype=dtype) for shape in (*row_shapes, *kept_shapes, *product_shapes)]


@torch.library.custom_op("rlpheads::tiled_cpu_weight_gradients", mutates_args=(), device_types="cpu")
def _weight_gradients_op(
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
) -> list[Tensor]:
    with torch.autocast("cpu", enabled=False):
        logits = _Logits(features_BD, weight_KD, bias_K)
        num_rows, num_classes = len(features_BD), len(weight_KD)
        num_kept = exp_flat.numel() // max(num_rows, 1)
        weight_gradient_KD = torch.empty_like(weight_KD[: num_classes * for_weight])
        bias_gradient_K = logits.features_BD.new_empty(num_classes * for_bias)
        for tile in _tiles(num_classes, start, labels_LB):
            if tile.stop <= num_kept:
                exp_BK = _kept(exp_flat, tile, num_rows)
            else:
                exp_BK = logits.buffer(tile)
                logits.write(tile, logits.weight(tile), exp_BK)
                exp_BK[tile.rows, tile.columns] = -torch.inf
                exp_BK.sub_(tile_shift_CB[tile.index, :, None]).exp_()
            label_N = label_LB.flatten()[tile.slots]
            scale_B = scale_CB[tile.index]
            if for_weight:
                gradient_KD = exp_BK.T @ ...
