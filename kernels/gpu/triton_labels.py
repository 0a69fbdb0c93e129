"""The operator that gathers the labels of several heads from their tables, in one launch of a Triton kernel.

It imports Triton at the first call only, so that the rest of the package runs where there is none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlpheads.kernels.operators import register_operator

SOURCES_PER_LAUNCH = 16
"""Heads whose labels one launch gathers: each is two of the kernel's arguments."""


def _gather(rows: Sequence[Tensor], indices: Sequence[Tensor | None]) -> Tensor:
    from rlpheads.kernels.gpu.triton_launch import gather_tables

    labels_SB = _empty_labels(rows, indices)
    for start in range(0, len(rows) if labels_SB.numel() else 0, SOURCES_PER_LAUNCH):
        some = slice(start, start + SOURCES_PER_LAUNCH)
        gather_tables(rows[some], indices[some], labels_SB[some])
    return labels_SB.flatten()


def _shape_of_labels(rows: Sequence[Tensor], indices: Sequence[Tensor | None]) -> Tensor:
    return _empty_labels(rows, indices).flatten()


def _empty_labels(rows: Sequence[Tensor], indices: Sequence[Tensor | None]) -> Tensor:
    """An uninitialised (S, B)."""
    first_B = rows[0] if indices[0] is None else indices[0]
    return first_B.new_empty((len(rows), len(first_B)), dtype=torch.int64)


gather_by_triton = register_operator(
    "triton_gather_labels", "Tensor[] rows, Tensor?[] indices) -> Tensor", _gather, _shape_of_labels
)
"""Labels of S heads, (S·B,) int64: where a head has an index, `row[index]` of a table's row, else its row itself.

Nothing is checked, as that would wait for the GPU: an index that is no column gives the label −1, which is no class, and with
it an infinite cross-entropy.
"""
