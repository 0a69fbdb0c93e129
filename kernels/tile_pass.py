"""What is done to a tile of logits between its two matrix products: maxima, exponentials and sums of every row.

In C++ (`tile_pass.cpp`) that is one sweep over a tile that lies in the cache. In plain PyTorch, which serves float64 and
machines without a compiler, it is as many sweeps as there are reductions.
"""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels import native
from rlpheads.kernels.partials import NO_CLASS_SHIFT

REACH = 8.0
"""How far above its shift a row's largest logit may lie: so little that exponents lose no digits, so much that the shift of
the first classes mostly serves them all."""


class Tile(NamedTuple):
    """A tile of classes, counted from the start of the range, and the N labels that fall into it."""

    start: int
    stop: int
    slot_N: Tensor
    """Positions of those labels in the flattened (L, B) labels."""
    row_N: Tensor
    column_N: Tensor
    """Their classes, counted from the tile's start."""

    def fill_labels(self, tile_KB: Tensor, value: float) -> None:
        """Set the labels' own entries."""
        tile_KB[self.column_N, self.row_N] = value

    def view(self, flat: Tensor, offset: int, num_rows: int) -> Tensor:
        """The (classes of the tile, B) block of a flat buffer that begins at `offset`."""
        width = self.stop - self.start
        return flat[offset : offset + num_rows * width].view(width, num_rows)


class RowState(NamedTuple):
    """Running statistics of the rows over the tiles seen so far, updated in place; see `partials.Partials`."""

    shift_B: Tensor
    """What the sums' exponents are relative to: at most `REACH` below the largest logit so far, the labels' left out."""
    sum_B: Tensor
    moment_B: Tensor
    label_logit_LB: Tensor
    max_before_B: Tensor
    max_after_B: Tensor
    factor_B: Tensor
    """By which what was summed before it was last set to 1 must be multiplied, now that the shift has moved."""

    @classmethod
    def start(cls, labels_LB: Tensor, dtype: torch.dtype) -> "RowState":
        """The statistics of no class at all."""
        num_rows = labels_LB.shape[1]
        fill = (NO_CLASS_SHIFT, 0.0, 0.0, -torch.inf, -torch.inf, -torch.inf, 1.0)
        shapes = [(num_rows,)] * 3 + [tuple(labels_LB.shape)] + [(num_rows,)] * 3
        return cls(*(torch.full(shape, value, dtype=dtype) for shape, value in zip(shapes, fill, strict=True)))


def reduce_tile(
    tile: Tile,
    logits_KB: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    state: RowState,
    moments_KB: Tensor | None,
) -> bool:
    """Turn a tile of logits into exponentials relative to the rows' shift, and bring the rows' statistics up to date.

    A row's shift is the first classes' maximum, and is raised where a later one lies more than `REACH` above it. That is
    known only when the tile is overwritten: then nothing of it was added, and it must be computed and passed once more.

    Args:
        tile: which classes these are.
        logits_KB: logits without bias, contiguous; overwritten by e^{z − s}, 0 at the labels.
        bias_K: bias of the tile's classes, or None.
        labels_LB: labels counted from the start of the range.
        state: updated in place.
        moments_KB: receives e^{z − s}·(z − s), if it is wanted.

    Returns:
        Whether the tile was taken; if not, compute its logits again and call again.
    """
    library = None if logits_KB.dtype != torch.float32 else native.load_library()
    if library is None:
        _reduce_plainly(tile, logits_KB, bias_K, labels_LB, state, moments_KB)
        return True
    width, num_rows = logits_KB.shape
    raised = library.rlpheads_reduce_tile(
        *(_pointer(logits_KB), _pointer(moments_KB), _pointer(bias_K), _pointer(labels_LB)),
        *(ctypes.c_int64(size) for size in (len(labels_LB), num_rows, width, tile.start)),
        *(_pointer(tensor) for tensor in state),
        ctypes.c_float(REACH),
        torch.get_num_threads(),
    )
    return not raised


def exponentiate_tile(tile: Tile, logits_KB: Tensor, bias_K: Tensor | None, labels_LB: Tensor, shift_B: Tensor) -> None:
    """Turn a tile of logits, computed once more, into the exponentials that `reduce_tile` made of it with this shift."""
    library = None if logits_KB.dtype != torch.float32 else native.load_library()
    if library is None:
        if bias_K is not None:
            logits_KB.add_(bias_K[:, None])
        tile.fill_labels(logits_KB, -torch.inf)
        logits_KB.sub_(shift_B).exp_()
        return
    width, num_rows = logits_KB.shape
    library.rlpheads_exponentiate_tile(
        *(_pointer(logits_KB), _pointer(bias_K), _pointer(labels_LB)),
        *(ctypes.c_int64(size) for size in (len(labels_LB), num_rows, width, tile.start)),
        _pointer(shift_B),
        torch.get_num_threads(),
    )


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _reduce_plainly(
    tile: Tile,
    logits_KB: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    state: RowState,
    moments_KB: Tensor | None,
) -> None:
    if bias_K is not None:
        logits_KB.add_(bias_K[:, None])
    _take_labels(tile, logits_KB, state)
    top_B = logits_KB.amax(0)
    torch.maximum(state.max_before_B, top_B.where(labels_LB[0] >= tile.stop, -torch.inf), out=state.max_before_B)
    torch.maximum(state.max_after_B, top_B.where(labels_LB[0] < tile.start, -torch.inf), out=state.max_after_B)
    shift_B = torch.maximum(state.shift_B, top_B)
    drop_B = state.shift_B - shift_B
    scale_B = drop_B.exp()
    state.shift_B.copy_(shift_B)
    state.moment_B.addcmul_(drop_B, state.sum_B).mul_(scale_B)
    state.sum_B.mul_(scale_B)
    state.factor_B.mul_(scale_B)
    logits_KB.sub_(shift_B)
    if moments_KB is None:
        state.sum_B.add_(logits_KB.exp_().sum(0))
        return
    moments_KB.copy_(logits_KB)
    state.sum_B.add_(logits_KB.exp_().sum(0))
    tile.fill_labels(moments_KB, 0.0)  # 0·(−inf) is not 0
    state.moment_B.add_(moments_KB.mul_(logits_KB).sum(0))


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
