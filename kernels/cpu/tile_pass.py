"""One tile of classes on the CPU: logits, exponentials, online-softmax statistics, products with the tile's weight.

`PlainPass` does it in plain PyTorch, in as many sweeps as there are operations: it serves float64 and machines without a
compiler. `rlpheads.kernels.cpu.tile_native.NativePass` does the same in C++, in one sweep over classes that lie in the cache.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rlpheads.kernels.rows.partials import NO_CLASS_SHIFT


class Tile(NamedTuple):
    """A tile of classes, counted from the start of the range, and the N labels that fall into it."""

    start: int
    stop: int
    slot_N: Tensor
    """Positions of those labels in the flattened (L, B) labels."""
    row_N: Tensor
    column_N: Tensor
    """Their classes, counted from the tile's start."""

    def view(self, flat: Tensor, offset: int, num_rows: int) -> Tensor:
        """The (classes of the tile, B) block of a flat buffer that begins at `offset`."""
        width = self.stop - self.start
        return flat[offset : offset + num_rows * width].view(width, num_rows)

    def fill_labels(self, tile_KB: Tensor, value: float) -> None:
        """Set the labels' own entries."""
        tile_KB[self.column_N, self.row_N] = value


class RowState(NamedTuple):
    """Running statistics of the rows over the tiles seen so far, updated in place; see `partials.Partials`."""

    shift_B: Tensor
    """What the sums' exponents are relative to: not far below the largest logit so far, the labels' left out."""
    sum_B: Tensor
    moment_B: Tensor
    """Empty if it is not wanted."""
    label_logit_LB: Tensor
    max_before_B: Tensor
    max_after_B: Tensor

    @classmethod
    def start(cls, labels_LB: Tensor, dtype: torch.dtype, *, moments: bool) -> "RowState":
        """Initial statistics, of no class."""
        num_rows = labels_LB.shape[1]
        fill = (NO_CLASS_SHIFT, 0.0, 0.0, -torch.inf, -torch.inf, -torch.inf)
        shapes = [(num_rows,), (num_rows,), (num_rows * moments,), tuple(labels_LB.shape), (num_rows,), (num_rows,)]
        return cls(*(torch.full(shape, value, dtype=dtype) for shape, value in zip(shapes, fill, strict=True)))


class ClassSums(NamedTuple):
    """Running sums over the classes with their weights, updated in place; see `partials.Products`. Empty if not wanted."""

    exp_weight_BD: Tensor
    moment_weight_BD: Tensor
    """Not without the other, nor without the rows' moments."""
    weight_sum_D: Tensor


class TilePass(Protocol):
    """The three passes over one tile of classes; it holds the features, and the labels counted from the start of the range.

    All tensors that its methods take are contiguous, but the scaled features need not be.
    """

    def reduce(
        self, tile: Tile, weight_KD: Tensor, bias_K: Tensor | None, out_KB: Tensor, state: RowState, sums: ClassSums
    ) -> None:
        """Online-softmax update: write the tile's exponentials, and update the rows' statistics and the sums.

        Args:
            tile: which classes these are.
            weight_KD: weight of the tile's classes.
            bias_K: their bias, or None.
            out_KB: receives e^{z − s}, 0 at the labels, where s is the shift that `state` has afterwards.
            state: updated in place; where its shift moves, all that was summed moves with it.
            sums: updated in place.
        """

    def exponentiate(
        self, tile: Tile, weight_KD: Tensor, bias_K: Tensor | None, out_KB: Tensor, shift_B: Tensor
    ) -> None:
        """Recompute the exponentials that `reduce` wrote of this tile, with the shift that it had."""

    def write_gradient(self, exp_KB: Tensor, scaled_BD: Tensor, out_KD: Tensor) -> None:
        """Write the product of a tile's exponentials with the features, each row of them scaled."""


class PlainPass:
    """`TilePass` in plain PyTorch, for any dtype. A row's shift is its running maximum."""

    def __init__(self, features_BD: Tensor, labels_LB: Tensor) -> None:
        self._features_DB = features_BD.T.contiguous()
        self._labels_LB = labels_LB

    def reduce(
        self, tile: Tile, weight_KD: Tensor, bias_K: Tensor | None, out_KB: Tensor, state: RowState, sums: ClassSums
    ) -> None:
        """See `TilePass`."""
        self._write_logits(weight_KD, bias_K, out_KB)
        _take_labels(tile, out_KB, state)
        top_B, first_B = out_KB.amax(0), self._labels_LB[0]
        torch.maximum(state.max_before_B, top_B.where(first_B >= tile.stop, -torch.inf), out=state.max_before_B)
        torch.maximum(state.max_after_B, top_B.where(first_B < tile.start, -torch.inf), out=state.max_after_B)
        _raise_shift(top_B, state, sums)
        out_KB.sub_(state.shift_B)
        moments_KB = out_KB.clone() if len(state.moment_B) else None
        state.sum_B.add_(out_KB.exp_().sum(0))
        if moments_KB is not None:
            moments_KB.masked_fill_(out_KB == 0, 0.0)  # at the labels and elsewhere: 0·(−inf) is not 0
            state.moment_B.add_(moments_KB.mul_(out_KB).sum(0))
            if len(sums.moment_weight_BD):
                sums.moment_weight_BD.addmm_(moments_KB.T, weight_KD)
        if len(sums.exp_weight_BD):
            sums.exp_weight_BD.addmm_(out_KB.T, weight_KD)
        if len(sums.weight_sum_D):
            sums.weight_sum_D.add_(weight_KD.sum(0))

    def exponentiate(
        self, tile: Tile, weight_KD: Tensor, bias_K: Tensor | None, out_KB: Tensor, shift_B: Tensor
    ) -> None:
        """See `TilePass`."""
        self._write_logits(weight_KD, bias_K, out_KB)
        tile.fill_labels(out_KB, -torch.inf)
        out_KB.sub_(shift_B).exp_()

    def write_gradient(self, exp_KB: Tensor, scaled_BD: Tensor, out_KD: Tensor) -> None:
        """See `TilePass`."""
        torch.mm(exp_KB, scaled_BD, out=out_KD)

    def _write_logits(self, weight_KD: Tensor, bias_K: Tensor | None, out_KB: Tensor) -> None:
        torch.mm(weight_KD, self._features_DB, out=out_KB)
        if bias_K is not None:
            out_KB.add_(bias_K[:, None])


def _take_labels(tile: Tile, logits_KB: Tensor, state: RowState) -> None:
    """Read the labels' logits, then set them to −inf, so that only the other classes are left."""
    if len(tile.slot_N) == 0:
        return
    state.label_logit_LB.view(-1)[tile.slot_N] = logits_KB[tile.column_N, tile.row_N]
    tile.fill_labels(logits_KB, -torch.inf)
    is_first_N = tile.slot_N < logits_KB.shape[1]
    row_N, column_N = tile.row_N[is_first_N], tile.column_N[is_first_N]
    top_N, argmax_N = logits_KB[:, row_N].max(0)
    before_N, after_N = (top_N.masked_fill(mask, -torch.inf) for mask in (argmax_N > column_N, argmax_N < column_N))
    state.max_before_B[row_N] = torch.maximum(state.max_before_B[row_N], before_N)
    state.max_after_B[row_N] = torch.maximum(state.max_after_B[row_N], after_N)


def _raise_shift(top_B: Tensor, state: RowState, sums: ClassSums) -> None:
    """Raise the rows' shifts to these maxima, with all that was summed with the earlier shifts.

    With d = s − s′: e^{z−s′} = e^d·e^{z−s}, and e^{z−s′}(z−s′) = e^d·(e^{z−s}(z−s) + d·e^{z−s}).
    """
    shift_B = torch.maximum(state.shift_B, top_B)
    drop_B = state.shift_B - shift_B
    if not drop_B.any():
        return
    scale_B = drop_B.exp()
    state.shift_B.copy_(shift_B)
    if len(state.moment_B):
        state.moment_B.addcmul_(drop_B, state.sum_B).mul_(scale_B)
    state.sum_B.mul_(scale_B)
    if len(sums.moment_weight_BD):
        sums.moment_weight_BD.addcmul_(sums.exp_weight_BD, drop_B[:, None]).mul_(scale_B[:, None])
    if len(sums.exp_weight_BD):
        sums.exp_weight_BD.mul_(scale_B[:, None])
