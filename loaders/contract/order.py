"""The order of the samples: a pure function of (seed, epoch).

Every loader asks here which samples a rank reads at a step. World size, workers, library and resume point change who
reads a sample, never which sample it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.hashing import absorb, absorbed_words, stream_state

ORDER_VERSION = 1
"""Rises with every change of which sample stands where: a checkpoint in the middle of an epoch belongs to its order."""
PADDING = -1
"""The index of a row that only fills a batch up."""


@dataclass(frozen=True)
class Order:
    """Which sample stands where in an epoch.

    Attributes:
        num_samples: Samples of the split, N.
        batch_size: Samples of one global batch, over all ranks.
        seed: Key of the permutation.
        shuffle: A new permutation each epoch, or the canonical order.
        partial: The last, partial global batch of an epoch is dropped, or padded with index -1.
        repeats: How often a sample stands in a global batch (repeated augmentation: Hoffer et al., 2020, arXiv:1901.09335). An
            epoch has as many steps as without, and so reads each time another part of the samples, as timm's
            `RepeatAugSampler` does.

    Raises:
        ValueError: For sizes below one, an unknown `partial`, a dropped batch that would leave no step at all, or repeats that
            do not fit the batch.
    """

    num_samples: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    partial: Literal["drop", "pad"] = "drop"
    repeats: int = 1

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.partial not in ("drop", "pad"):
            raise ValueError(f"partial is {self.partial!r}; it must be 'drop' or 'pad'")
        if self.num_steps == 0:
            raise ValueError(
                f"batch_size {self.batch_size} is more than the {self.num_samples} samples, and partial='drop' leaves "
                f"no step: lower batch_size, or set partial='pad'"
            )

        if self.repeats > 1 and (self.batch_size % self.repeats or self.batch_size < 2 * self.repeats):
            raise ValueError(
                f"repeats is {self.repeats}; the batch size {self.batch_size} must be a multiple, twice or more"
            )
        if self.repeats > 1 and (self.partial != "drop" or not self.shuffle):
            raise ValueError(
                f"repeats is {self.repeats}; only a shuffled order that drops its last, partial batch has any"
            )

    @cached_property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (1 if rest and self.partial == "pad" else 0)

    @cached_property
    def samples_per_epoch(self) -> int:
        """Samples that an epoch reads, padding not counted."""
        return min(self.num_samples, self.num_steps * self.batch_size)

    def epoch_indices(self, epoch: int) -> Int64Array:
        """Return the canonical indices in the order in which the epoch reads them: int64 (N,).

        With repeats they are those of its steps, each as often as it is read.
        The permutation sorts the hashes of (seed, epoch, index). Each is that of one index, which is recovered from it:
        sorting the hashes themselves and that take half the time of sorting the indices by them.
        """
        if not self.shuffle:
            return np.arange(self.num_samples, dtype=np.int64)
        state = stream_state(self.seed, "order", epoch)
        hashes_N = absorb(state, np.arange(self.num_samples, dtype=np.uint64))
        hashes_N.sort()
        indices_N = absorbed_words(state, hashes_N).view(np.int64)
        return indices_N if self.repeats == 1 else self._repeated(indices_N)

    def _repeated(self, indices_N: Int64Array) -> Int64Array:
        """Return the first samples, repeated within each global batch: one pass over them after the other.

        Each pass begins one sample later, so that neighbours, which are mixed, are other ones than in the pass before.
        """
        distinct_SD = indices_N[: self.num_steps * self._num_distinct].reshape(self.num_steps, -1)
        passes = [np.roll(distinct_SD, -repeat, axis=1) for repeat in range(self.repeats)]
        return np.concatenate(passes, axis=1).ravel()

    @property
    def _num_distinct(self) -> int:
        return self.batch_size // self.repeats

    def repeat_of_rows(self, rank: int, world_size: int) -> Int64Array:
        """Return, for each row of a rank's share, how often its sample stands earlier in the global batch: int64 (B,)."""
        num_rows = self.batch_size // world_size
        return (np.arange(num_rows, dtype=np.int64) + rank * num_rows) // self._num_distinct

    def draw_keys(self, index_SB: Int64Array, rank: int, world_size: int) -> Int64Array:
        """Return what keys the random draws of a rank's rows: the index, and another number for each repeat. int64 (S, B)."""
        if self.repeats == 1:
            return index_SB
        return index_SB + self.num_samples * self.repeat_of_rows(rank, world_size)

    def rank_indices(self, epoch: int, step: int, rank: int, world_size: int) -> Int64Array:
        """Return what a rank reads at a step: int64 (batch_size / world_size,), with -1 for padding.

        Costs a whole permutation when `shuffle` is set; over many steps, cut `rank_slice` from one `epoch_indices`.
        """
        return self.rank_slice(self.epoch_indices(epoch), step, rank, world_size)

    def rank_slice(self, epoch_indices_N: Int64Array, step: int, rank: int, world_size: int) -> Int64Array:
        """Cut a rank's share of a step from the epoch's indices: int64 (batch_size / world_size,). See `rank_slices`."""
        return self.rank_slices(epoch_indices_N, range(step, step + 1), rank, world_size)[0]

    def rank_slices(self, epoch_indices_N: Int64Array, steps: range, rank: int, world_size: int) -> Int64Array:
        """Cut a rank's share of S consecutive steps from the epoch's indices: contiguous, of equal size on every rank.

        Returns:
            int64 (S, batch_size / world_size), with -1 for padding, which stands at the end of the last global batch. The
            memory is the caller's.

        Raises:
            ValueError: For a step or rank out of range, or a world size that does not fit (see `check_world_size`).
        """
        self.check_world_size(world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; it must be in 0..{world_size - 1}")
        for step in (steps[0], steps[-1]) if steps else ():
            if not 0 <= step < self.num_steps:
                raise ValueError(f"step is {step}; the epoch has steps 0..{self.num_steps - 1}")
        num_rows = self.batch_size // world_size
        share_SB = np.full((len(steps), num_rows), PADDING, dtype=np.int64)
        taken = epoch_indices_N[steps.start * self.batch_size : steps.stop * self.batch_size]
        whole, rest = divmod(len(taken), self.batch_size)
        mine = slice(rank * num_rows, (rank + 1) * num_rows)
        share_SB[:whole] = taken[: whole * self.batch_size].reshape(whole, self.batch_size)[:, mine]
        if rest:
            partial = taken[whole * self.batch_size :][mine]
            share_SB[whole, : len(partial)] = partial
        return share_SB

    def check_world_size(self, world_size: int) -> None:
        """Check that the global batch can be cut for this many ranks.

        Each rank needs an equal share, and an even one in training, where neighbours are mixup partners.

        Raises:
            ValueError: If it cannot, with the nearest batch size that can.
        """
        if world_size < 1:
            raise ValueError(f"world_size is {world_size}; it must be at least 1")
        evaluates = not self.shuffle and self.partial == "pad"
        unit = world_size if evaluates else 2 * world_size
        if self.batch_size % unit:
            nearest = max(1, round(self.batch_size / unit)) * unit
            why = "equal shares" if evaluates else "equal and even shares"
            raise ValueError(
                f"batch_size {self.batch_size} cannot be cut into {why} for {world_size} ranks: it must be a multiple "
                f"of {unit}; the nearest is {nearest}"
            )

    def rows_at(self, step: int) -> int:
        """Return how many rows of a step's global batch are samples, not padding."""
        return min(self.batch_size, self.num_samples - step * self.batch_size)

    def consumed_after(self, step: int) -> int:
        """Return how many samples of the epoch are read when this step is done."""
        return min((step + 1) * self.batch_size, self.samples_per_epoch)

    def step_at(self, consumed: int) -> int:
        """Return the step that follows after `consumed` samples of an epoch; `num_steps` at its end.

        Raises:
            ValueError: If no step begins there, because the batch size or the dataset is another.
        """
        if consumed == self.samples_per_epoch:
            return self.num_steps
        if not 0 <= consumed < self.samples_per_epoch or consumed % self.batch_size:
            raise ValueError(
                f"no step begins after {consumed} samples: it must be a multiple of the global batch size "
                f"{self.batch_size} below {self.samples_per_epoch}, or {self.samples_per_epoch}, the end of the epoch"
            )
        return consumed // self.batch_size
