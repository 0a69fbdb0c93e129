"""Features streamed as blocks of rows, so that a probe can make several passes without holding them all.

A probe takes a tensor (N, D) or anything that yields blocks (B, D) in the same order each time it is iterated, such as
slices of a memory-mapped file that are moved to a GPU one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpheads.memorization.arguments import check_count, check_integers, check_seed
from rlpheads.memorization.heads.hashing import key_from_name

Features = Tensor | Iterable[Tensor]
"""Features (N, D) of any float dtype, or blocks (B, D) of them that can be iterated again and again."""

BLOCK_ROWS = 8192


def iterate_blocks(features: Features) -> Iterator[Tensor]:
    """Yield blocks (B, D) in order, detached; empty ones are left out.

    Raises:
        ValueError: an iterator that could be read only once, or a block that is no float matrix.
    """
    if iter(features) is features:
        raise ValueError("a probe reads its features more than once: give a tensor, a list or an iterable, no iterator")
    for block_BD in features.split(BLOCK_ROWS) if isinstance(features, Tensor) else features:
        if block_BD.dim() != 2 or not block_BD.is_floating_point():
            raise ValueError(f"features come as float (B, D); got {block_BD.dtype} of shape {tuple(block_BD.shape)}")
        if len(block_BD):
            yield block_BD.detach()


def iterate_rows(features: Features, labels_MN: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of features in fp64 (B, D) beside their labels, int64 (M, B), on the block's device.

    Raises:
        ValueError: there are not as many rows of features as labels, or the labels are no matrix of integers.
    """
    check_integers("labels_MN", labels_MN)
    if labels_MN.dim() != 2:
        raise ValueError(f"labels_MN has shape {tuple(labels_MN.shape)}; it must be (draws, samples)")
    num_rows, num_labelled = 0, labels_MN.shape[-1]
    for block_BD in iterate_blocks(features):
        start, num_rows = num_rows, num_rows + len(block_BD)
        if num_rows > num_labelled:
            break
        yield block_BD.double(), labels_MN[:, start:num_rows].to(block_BD.device, torch.int64)
    if num_rows != num_labelled:
        given = f"more than {num_labelled}" if num_rows > num_labelled else str(num_rows)
        raise ValueError(f"there are {given} rows of features for {num_labelled} labels")


@dataclass(frozen=True, eq=False)
class WatchedRows:
    """Features whose blocks are counted as they are read: a long fit says by them that it gets on.

    Attributes:
        features_ND: all rows.
        advance: is called once a block.
        num_rows: rows of a block, at most `BLOCK_ROWS`.
    """

    features_ND: Tensor
    advance: Callable[[], None]
    num_rows: int = BLOCK_ROWS

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the blocks."""
        for block_BD in self.features_ND.split(min(max(1, self.num_rows), BLOCK_ROWS)):
            self.advance()
            yield block_BD


@dataclass(frozen=True, eq=False)
class RowSubset:
    """Some rows of some features.

    Attributes:
        features: all rows.
        rows_E: the rows to read, ascending int64 (E,).
    """

    features: Features
    rows_E: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the chosen rows of each block."""
        rows_E = self.rows_E.cpu()
        start = 0
        for block_BD in iterate_blocks(self.features):
            end = start + len(block_BD)
            first, last = torch.searchsorted(rows_E, torch.tensor([start, end])).tolist()
            yield block_BD[(rows_E[first:last] - start).to(block_BD.device)]
            start = end


@dataclass(frozen=True)
class GaussianFeatures:
    """Standard normal features, independent of every label: the control for what a probe fits by itself.

    Attributes:
        num_samples: N.
        num_features: D.
        seed: key of the numbers; the same seed gives the same features.
    """

    num_samples: int
    num_features: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("num_samples", self.num_samples)
        check_count("num_features", self.num_features)
        check_seed(self.seed)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield float32 blocks on the CPU; nothing is kept."""
        for start in range(0, self.num_samples, BLOCK_ROWS):
            generator = torch.Generator().manual_seed(key_from_name("Gaussian features", self.seed, start))
            num_rows = min(BLOCK_ROWS, self.num_samples - start)
            yield torch.randn(num_rows, self.num_features, generator=generator)
