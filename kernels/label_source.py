"""Where a row's labels come from: a tensor, or a table of every sample's labels that is read by the sample's index."""

from collections.abc import Sequence

import torch
from torch import Tensor

Labels = Tensor | tuple[Tensor, Tensor, int]
"""Labels (B,), or (table (M, N), index (B,), draw): row b's label is table[draw, index[b]]. An index of −1 marks a padding
row, which reads some label in range: its losses are finite, and the caller leaves them out."""

Pair = tuple[Labels, Tensor]
"""Second labels, and the weight in [0, 1] of the first."""

SOURCES_A_LAUNCH = 16
"""Heads whose labels one launch of the Triton kernel gathers: each is two of its arguments."""


def gather_labels(heads: Sequence[Labels], impl: str) -> Tensor:
    """Labels of the rows of all heads, one head after another, as int64; with `triton` tables are read by one kernel."""
    if impl == "triton" and any(isinstance(labels, tuple) for labels in heads):
        rows = [labels if isinstance(labels, Tensor) else labels[0][labels[2]] for labels in heads]
        return _gather_by_triton(rows, [None if isinstance(labels, Tensor) else labels[1] for labels in heads])
    return concatenate([_gather_plainly(labels) for labels in heads])


def concatenate(parts: Sequence[Tensor]) -> Tensor:
    """Put the rows of all heads one head after another; they are the last dimension."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), -1)


def _gather_plainly(labels: Labels) -> Tensor:
    if isinstance(labels, Tensor):
        return labels.long()
    table_MN, index_B, draw = labels
    if index_B.device.type == "cpu":
        return _gather_op(table_MN, index_B, draw)
    return table_MN[draw].index_select(0, index_B.clamp(min=0)).long()


@torch.library.custom_op("rlpheads::gather_labels", mutates_args=(), device_types="cpu")
def _gather_op(table_MN: Tensor, index_B: Tensor, draw: int) -> Tensor:
    """Check the index in an operator, since Python cannot branch on values under FakeTensorMode or torch.compile."""
    if index_B.numel():
        smallest, largest = (int(value) for value in index_B.aminmax())
        if smallest < -1 or largest >= table_MN.shape[1]:
            raise ValueError(
                f"index must be in [0, {table_MN.shape[1]}), a column of the table, or -1 for a padding row; "
                f"got indices from {smallest} to {largest}"
            )
    return table_MN[draw].index_select(0, index_B.clamp(min=0)).to(torch.int64, copy=True)


@_gather_op.register_fake
def _(table_MN: Tensor, index_B: Tensor, draw: int) -> Tensor:
    return index_B.new_empty(index_B.shape, dtype=torch.int64)


@torch.library.custom_op("rlpheads::triton_gather_labels", mutates_args=(), device_types=("cpu", "cuda"))
def _gather_by_triton(rows: Sequence[Tensor], indices: Sequence[Tensor | None]) -> Tensor:
    """Labels of each head: where it has an index, `row[index]` of a table's row, else its row itself.

    Nothing is checked, as that would wait for the GPU: an index that is no column gives the label −1, which is no class,
    and with it an infinite cross-entropy.
    """
    from rlpheads.kernels.gpu.triton_launch import gather_labels as launch

    labels_SB = _room_for_labels(rows, indices)
    for start in range(0, len(rows) if labels_SB.numel() else 0, SOURCES_A_LAUNCH):
        some = slice(start, start + SOURCES_A_LAUNCH)
        launch(rows[some], indices[some], labels_SB[some])
    return labels_SB.flatten()


@_gather_by_triton.register_fake
def _(rows: Sequence[Tensor], indices: Sequence[Tensor | None]) -> Tensor:
    return _room_for_labels(rows, indices).flatten()


def _room_for_labels(rows: Sequence[Tensor], indices: Sequence[Tensor | None]) -> Tensor:
    """An empty (S, B)."""
    first_B = rows[0] if indices[0] is None else indices[0]
    return first_B.new_empty((len(rows), len(first_B)), dtype=torch.int64)
