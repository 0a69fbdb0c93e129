"""Where a row's labels come from: a tensor, or a table of every sample's labels that is indexed by sample."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlpheads.kernels.operators import register_operator

Labels = Tensor | tuple[Tensor, Tensor, int]
"""Labels (B,), or (table (M, N), index (B,), draw): row b's label is table[draw, index[b]]. An index of −1 marks a padding
row, which reads some label in range: its losses are finite, and the caller leaves them out."""

Pair = tuple[Labels, Tensor]
"""Second labels, and the weight in [0, 1] of the first."""

TableGather = Callable[[Sequence[Tensor], Sequence[Tensor | None]], Tensor]
"""(rows, indices) of the heads → their labels one after another: `row[index]`, or the row itself where there is no index."""


def tensors_of_labels(labels: Labels) -> tuple[Tensor, ...]:
    """The tensors that labels are read from."""
    return (labels,) if isinstance(labels, Tensor) else labels[:2]


def gather_labels(heads: Sequence[Labels], gather_tables: TableGather | None = None) -> Tensor:
    """Labels of the rows of all heads, one head after another, as int64.

    Where any head has a table, `gather_tables` reads those of all heads in one call; without it each is read by PyTorch.
    """
    if gather_tables is not None and any(isinstance(labels, tuple) for labels in heads):
        rows = [labels if isinstance(labels, Tensor) else labels[0][labels[2]] for labels in heads]
        return gather_tables(rows, [None if isinstance(labels, Tensor) else labels[1] for labels in heads])
    return concatenate([each.long() if isinstance(each, Tensor) else _gather_by_pytorch(*each) for each in heads])


def check_values_on_host(labels_LB: Tensor, weight_LB: Tensor | None, num_labels: int) -> None:
    """Check on the host that labels lie in [0, K) and weights in [0, 1]."""
    if labels_LB.numel() == 0:
        return
    smallest, largest = (int(value) for value in labels_LB.aminmax())
    if smallest < 0 or largest >= num_labels:
        raise ValueError(f"labels must be in [0, {num_labels}); got labels from {smallest} to {largest}")
    if weight_LB is not None and not bool(((weight_LB >= 0) & (weight_LB <= 1)).all()):
        raise ValueError("the weights of a pair must be in [0, 1]")


def concatenate(parts: Sequence[Tensor]) -> Tensor:
    """Put the rows of all heads one head after another; they are the last dimension."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), -1)


def _gather_by_pytorch(table_MN: Tensor, index_B: Tensor, draw: int) -> Tensor:
    if index_B.device.type == "cpu":
        return _gather_op(table_MN, index_B, draw)
    return table_MN[draw].index_select(0, index_B.clamp(min=0)).long()


def _gather(table_MN: Tensor, index_B: Tensor, draw: int) -> Tensor:
    """Check the index in an operator, since Python cannot branch on values under FakeTensorMode or torch.compile."""
    if index_B.numel():
        smallest, largest = (int(value) for value in index_B.aminmax())
        if smallest < -1 or largest >= table_MN.shape[1]:
            raise ValueError(
                f"index must be in [0, {table_MN.shape[1]}), a column of the table, or -1 for a padding row; "
                f"got indices from {smallest} to {largest}"
            )
    return table_MN[draw].index_select(0, index_B.clamp(min=0)).to(torch.int64, copy=True)


def _shape_of_labels(table_MN: Tensor, index_B: Tensor, draw: int) -> Tensor:
    return index_B.new_empty(index_B.shape, dtype=torch.int64)


_gather_op = register_operator(
    "gather_labels", "Tensor table, Tensor index, SymInt draw) -> Tensor", _gather, _shape_of_labels
)
