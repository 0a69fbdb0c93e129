"""The message in which ranks tell one another of their rows: features, labels, weights and padding in one buffer of bytes.

On a CPU one call of C++ packs it and one takes it apart (`message_native`); elsewhere a few operations of PyTorch, by the same
layout: the widest numbers first, so that none lies across its own alignment, and those of one shape behind one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.batched.batched_loss import BatchedLabels
from rlpheads.kernels.batched.message_native import MessageLayout, native_message
from rlpheads.kernels.operators import register_operator


class OwnRows(NamedTuple):
    """What a rank says of its rows; every rank has as many, of the same widths and dtypes."""

    features: list[Tensor]
    """(B, D) each."""
    labels: list[Tensor]
    """Integers (M, B) below 2^31, a row for each draw; of mixed rows the second labels follow, in as many tensors again."""
    weight_B: Tensor | None
    """Of mixed rows the weight of the first label."""
    valid_B: Tensor | None
    """bool, False for padding; None: there is none."""


class GatheredRows(NamedTuple):
    """What every rank then knows of the rows of all ranks, in the ranks' order."""

    labels: BatchedLabels
    """Of every head's rows, one head after another."""
    valid_G: Tensor
    features: list[Tensor]
    """(G, D) each."""


def pack_rows(rows: OwnRows) -> Tensor:
    """Return a rank's message, bytes. No gradient."""
    with torch.no_grad():
        packed_X: Tensor = _pack_op(*rows)
    return packed_X


def unpack_rows(gathered_NX: Tensor, rows: OwnRows, copies: Sequence[int]) -> GatheredRows:
    """Take the messages of all ranks apart.

    Args:
        gathered_NX: their bytes.
        rows: what this rank packed, whose shapes and dtypes are those of all.
        copies: of each tensor of (first) labels how many times its heads stand behind one another: once for each tap.
    """
    with torch.no_grad():
        index_LR, weight_R, valid_G, *features = _unpack_op(
            gathered_NX, rows.features, rows.labels, rows.weight_B, copies
        )
    labels = BatchedLabels(index_LR, None if rows.weight_B is None else weight_R)
    return GatheredRows(labels, valid_G, features)


class _Block(NamedTuple):
    """A tensor of a message."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _floats(rows: OwnRows) -> list[Tensor]:
    return rows.features if rows.weight_B is None else [*rows.features, rows.weight_B]


def _blocks_of(rows: OwnRows) -> list[_Block]:
    """Features, weight where there is one, padding, labels."""
    num_rows = rows.labels[0].shape[1]
    integers = _Block(torch.int32, (num_rows, sum(len(each) for each in rows.labels)))
    floats = [_Block(each.dtype, tuple(each.shape)) for each in _floats(rows)]
    return [*floats, _Block(torch.bool, (num_rows,)), integers]


def _runs_of_one_shape(blocks: Sequence[_Block]) -> list[list[int]]:
    """Group blocks of one dtype and shape, in the order in which they lie in the message."""
    runs: dict[_Block, list[int]] = {}
    for place, block in enumerate(blocks):
        runs.setdefault(block, []).append(place)
    ordered = sorted(runs.items(), key=lambda run: (-run[0].dtype.itemsize, str(run[0].dtype)))
    return [places for _, places in ordered]


def _layout(blocks: Sequence[_Block], labels: Sequence[Tensor]) -> MessageLayout:
    offsets, begin = [0] * len(blocks), 0
    for place in (place for run in _runs_of_one_shape(blocks) for place in run):
        offsets[place] = begin
        begin += blocks[place].num_bytes
    sizes = tuple(block.num_bytes for block in blocks[:-1])
    draws = tuple(len(each) for each in labels)
    return MessageLayout(blocks[-1].shape[0], draws, tuple(offsets[:-1]), sizes, offsets[-1], begin)


def _compute_packed(*own_rows: Any) -> Tensor:
    rows = OwnRows._make(own_rows)
    native = native_message(rows.labels[0].device)
    if native is None:
        return packed_by_pytorch(rows)
    return native.pack(_layout(_blocks_of(rows), rows.labels), [*_floats(rows), rows.valid_B], rows.labels)


def packed_by_pytorch(rows: OwnRows) -> Tensor:
    """`pack_rows` without C++."""
    valid_B = torch.ones_like(rows.labels[0][0], dtype=torch.bool) if rows.valid_B is None else rows.valid_B
    tensors = [*_floats(rows), valid_B, torch.cat(rows.labels).T.to(torch.int32)]
    runs = _runs_of_one_shape(_blocks_of(rows))
    return torch.cat([_as_bytes([tensors[place] for place in run]) for run in runs])


def _as_bytes(tensors: list[Tensor]) -> Tensor:
    """Pack tensors of one dtype and shape behind one another."""
    return (tensors[0] if len(tensors) == 1 else torch.stack(tensors)).flatten().view(torch.uint8)


def _compute_unpacked(gathered_NX: Tensor, *own_rows_and_copies: Any) -> list[Tensor]:
    features, labels, weight_B, copies = own_rows_and_copies
    rows = OwnRows(features, labels, weight_B, None)
    native = native_message(gathered_NX.device)
    if native is None:
        return unpacked_by_pytorch(gathered_NX, rows, copies)
    index_LR, weight_R, valid_G, *gathered = outputs = _shape_of_unpacked(gathered_NX, *own_rows_and_copies)
    weights, counts = ([], []) if rows.weight_B is None else ([weight_R], [_num_heads(rows, copies)])
    blocks, counts = [*gathered, *weights, valid_G], [*[1] * len(gathered), *counts, 1]
    layout = _layout(_blocks_of(rows), rows.labels)
    native.unpack(layout, gathered_NX, (blocks, index_LR), (counts, [*copies] * len(index_LR)))
    return outputs


def unpacked_by_pytorch(gathered_NX: Tensor, rows: OwnRows, copies: Sequence[int]) -> list[Tensor]:
    """`unpack_rows` without C++: labels, their weights (or nothing), padding, features."""
    *floats, valid_G, integers_GI = _rows_of(gathered_NX, _blocks_of(rows))
    labels_a_row = 1 if rows.weight_B is None else 2
    of_sets = integers_GI.T.long().split([len(each) for each in rows.labels])
    repeated = [each.repeat(count, 1) for each, count in zip(of_sets, [*copies] * labels_a_row, strict=True)]
    index_LR = torch.cat([each.view(-1) for each in repeated]).view(labels_a_row, -1)
    if rows.weight_B is None:
        return [index_LR, gathered_NX.new_empty(0), valid_G, *floats]
    *features, weight_G = floats
    return [index_LR, weight_G.repeat(_num_heads(rows, copies)), valid_G, *features]


def _num_heads(rows: OwnRows, copies: Sequence[int]) -> int:
    """How many heads the labels are of; second labels are of the same."""
    return sum(len(each) * count for each, count in zip(rows.labels, copies, strict=False))


def _rows_of(gathered_NX: Tensor, blocks: Sequence[_Block]) -> list[Tensor]:
    """Unpack what the ranks sent of each block, those of one shape in one copy."""
    runs = _runs_of_one_shape(blocks)
    rows: dict[int, Tensor] = {}
    parts = gathered_NX.split([len(run) * blocks[run[0]].num_bytes for run in runs], 1)
    for run, part_NX in zip(runs, parts, strict=True):
        dtype, (num_rows, *others) = blocks[run[0]]
        numbers = part_NX.reshape(-1).view(dtype)
        if len(run) == 1:
            rows[run[0]] = numbers.view(-1, *others)
            continue
        of_ranks = numbers.view(len(part_NX), len(run), num_rows, *others).transpose(0, 1)
        rows |= dict(zip(run, of_ranks.reshape(len(run), -1, *others).unbind(), strict=True))
    return [rows[place] for place in range(len(blocks))]


def _shape_of_packed(*own_rows: Any) -> Tensor:
    rows = OwnRows._make(own_rows)
    return rows.labels[0].new_empty(sum(block.num_bytes for block in _blocks_of(rows)), dtype=torch.uint8)


def _shape_of_unpacked(gathered_NX: Tensor, *own_rows_and_copies: Any) -> list[Tensor]:
    features, labels, weight_B, copies = own_rows_and_copies
    rows, empty = OwnRows(features, labels, weight_B, None), gathered_NX.new_empty
    num_rows, labels_a_row = len(gathered_NX) * rows.labels[0].shape[1], 1 if rows.weight_B is None else 2
    num_labels = _num_heads(rows, copies) * num_rows
    return [
        empty((labels_a_row, num_labels), dtype=torch.int64),
        empty(0) if rows.weight_B is None else empty(num_labels, dtype=rows.weight_B.dtype),
        empty(num_rows, dtype=torch.bool),
        *(empty((num_rows, each.shape[1]), dtype=each.dtype) for each in rows.features),
    ]


_pack_op: Any = register_operator(
    "pack_rows",
    "Tensor[] features, Tensor[] labels, Tensor? weight, Tensor? valid) -> Tensor",
    _compute_packed,
    _shape_of_packed,
)
_unpack_op: Any = register_operator(
    "unpack_rows",
    "Tensor gathered, Tensor[] features, Tensor[] labels, Tensor? weight, int[] copies) -> Tensor[]",
    _compute_unpacked,
    _shape_of_unpacked,
)
