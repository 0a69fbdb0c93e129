"""Requests for batches: a rank's samples at each step, with the random numbers of their crops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from rlpheads.loaders.contract.arrays import FloatArray, Int64Array
from rlpheads.loaders.contract.crops import DRAWN_AT_ONCE
from rlpheads.loaders.contract.order import Order

Draw = Callable[[int, Int64Array], FloatArray]
"""Returns the random numbers of the crops of B samples in an epoch, float64 (U, B), by their keys (`Order.draw_keys`); see
`crops.draw_crops`."""


class Request(NamedTuple):
    """A rank's share of a step. It goes to another process as plain bytes, in a tenth of an array's time.

    Attributes:
        index_B: Canonical indices, int64 (B,); padding, -1, stands at the end.
        draws_UB: Random numbers of their crops: float64 (U, B).
        num_global_rows: Rows of the whole global batch that are not padding.
        epoch: Epoch, from 0.
    """

    index_B: Int64Array
    draws_UB: FloatArray
    num_global_rows: int
    epoch: int

    @property
    def samples(self) -> Int64Array:
        """The indices that are not padding."""
        return self.index_B[self.index_B >= 0]

    def __reduce__(self) -> tuple[Callable[..., Request], tuple[bytes, bytes, int, int]]:
        return _unpickle, (self.index_B.tobytes(), self.draws_UB.tobytes(), self.num_global_rows, self.epoch)


def _unpickle(index: bytes, draws: bytes, num_global_rows: int, epoch: int) -> Request:
    """Rebuild a pickled request; its arrays are read-only."""
    index_B = np.frombuffer(index, dtype=np.int64)
    return Request(index_B, np.frombuffer(draws).reshape(-1, len(index_B)), num_global_rows, epoch)


def rank_requests(
    order: Order, draw: Draw, epoch: int, first_step: int, *, rank: int, world_size: int
) -> Iterator[Request]:
    """Yield a rank's requests from a step to the end of the epoch.

    Some thousand samples are drawn for at once. A request does not depend on where that began: it is a pure function of
    (seed, epoch, step).
    """
    epoch_indices_N = order.epoch_indices(epoch)
    steps_at_once = max(1, DRAWN_AT_ONCE * world_size // order.batch_size)
    for start in range(first_step, order.num_steps, steps_at_once):
        steps = range(start, min(start + steps_at_once, order.num_steps))
        index_SB = order.rank_slices(epoch_indices_N, steps, rank, world_size)
        keys_SB = order.draw_keys(index_SB, rank, world_size)
        draws_USB = draw(epoch, keys_SB.ravel()).reshape(-1, *index_SB.shape)
        for step, index_B, draws_UB in zip(steps, index_SB, draws_USB.swapaxes(0, 1), strict=True):
            yield Request(index_B, draws_UB, order.rows_at(step), epoch)
