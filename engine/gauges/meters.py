"""Figures of the training steps: kept on the device, averaged over the ranks, read on the host one step late."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from rlpheads.engine.gauges.host_copy import HostCopy
from rlpheads.engine.gauges.own_time import RankTimes


@dataclass(frozen=True)
class StepFigures:
    """The figures of some steps, on the host.

    Attributes:
        steps: number of each step, from 1, in order.
        figures: by name the figure of each step, the mean over the ranks.
        closed_at: optimizer steps taken when their window was closed.
        beside: figures that the host knew then.
        ranks: times of every rank in this window, by its number; none where they were not asked for.
    """

    steps: tuple[int, ...]
    figures: Mapping[str, list[float]]
    closed_at: int
    beside: Mapping[str, float]
    ranks: tuple[RankTimes, ...] = ()


class PartialWindow(NamedTuple):
    """The S steps of a window that is not closed yet, by their numbers: W ranks' shares of F figures, float32."""

    names: tuple[str, ...]
    steps: tuple[int, ...]
    shares_WSF: Tensor


class Meters:
    """A window of steps whose figures are read without stopping the device.

    Each step adds this rank's share of each figure. `begin_read` starts the reduction of the window and its copy to
    the host; `finish_read`, called after the next step was issued, returns it.
    """

    def __init__(self, device: torch.device, world_size: int, rank: int = 0):
        self._device = device
        self._rank = rank
        self._world_size = world_size
        self._names: tuple[str, ...] = ()
        self._steps: tuple[int, ...] = ()
        self._shares: list[Tensor] = []
        self._pending: _Read | None = None

    def add(self, step: int, shares: Mapping[str, Tensor]) -> None:
        """Add the figures of step number `step` (0-d tensors on the device, without a graph).

        A window that was resumed with other figures than the step's, by whoever wrote that checkpoint, begins anew.
        """
        if self._names != tuple(shares):
            self._names, self._steps, self._shares = tuple(shares), (), []
        self._shares.append(torch.stack(tuple(shares.values())).float())
        self._steps = (*self._steps, step)

    def partial_window(self) -> PartialWindow | None:
        """Return the steps since the last window was closed, for a checkpoint; None if there are none. Collective."""
        if not self._steps:
            return None
        shares_SF = torch.stack(self._shares)
        shares_WSF = shares_SF.new_empty(self._world_size, *shares_SF.shape)
        dist.all_gather(list(shares_WSF.unbind()), shares_SF)
        return PartialWindow(self._names, self._steps, shares_WSF)

    def resume_window(self, window: PartialWindow, rank: int) -> None:
        """Go on with a window that a checkpoint stands in the middle of.

        Args:
            window: what `partial_window` returned, at this or another number of ranks.
            rank: this rank. It goes on with its own shares, to the last bit, or with the mean of all ranks'.
        """
        self._names, self._steps = window.names, window.steps
        shares_WSF = window.shares_WSF.to(self._device)
        mine = shares_WSF[rank] if len(shares_WSF) == self._world_size else shares_WSF.mean(0)
        self._shares = list(mine.unbind())

    def read_open_window(self) -> StepFigures | None:
        """Wait for the steps since the last window was closed, which stays open; None if there are none. Collective."""
        if not self._steps:
            return None
        return self._read(None).finish(self._steps[-1], {})

    def begin_read(self, step: int, own: RankTimes | None = None, **beside: float) -> None:
        """Close the window at `step` and send its figures on their way to the host. Collective.

        Args:
            step: optimizer steps taken.
            own: this rank's times, which travel with the figures; all ranks give theirs, or none does.
            beside: figures that the host knows at this moment, to be returned beside the steps'.
        """
        if not self._steps:
            return
        self._pending = self._read(own)
        self._closed_at, self._beside = step, beside
        self._steps, self._shares = (), []

    def finish_read(self) -> StepFigures | None:
        """Return the window that was closed last, once; None if there is none."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        return pending.finish(self._closed_at, self._beside)

    def _read(self, own: RankTimes | None) -> _Read:
        shares_SF = torch.stack(self._shares)
        times_W2 = shares_SF.new_zeros(0 if own is None else self._world_size, len(RankTimes._fields))
        if own is not None:
            for column, seconds in enumerate(own):
                times_W2[self._rank, column].fill_(seconds)  # an argument of a kernel: nothing is copied from the host
        return _Read(self._names, shares_SF, self._steps, times_W2, self._world_size)


class _Read:
    """A reduction and a copy to the host that are under way."""

    def __init__(
        self, names: tuple[str, ...], shares_SF: Tensor, steps: tuple[int, ...], times_W2: Tensor, world_size: int
    ):
        self._names, self._steps, self._world_size = names, steps, world_size
        self._shapes = shares_SF.shape, times_W2.shape
        sums_N = torch.cat([shares_SF.flatten(), times_W2.flatten()])  # one message: of the times each rank has its own
        work = dist.all_reduce(sums_N, async_op=True)
        assert work is not None
        self._copy = HostCopy(work, sums_N)

    def finish(self, closed_at: int, beside: Mapping[str, float]) -> StepFigures:
        """Return the figures; the device has had a step's time to get there."""
        sums_N = self._copy.read().double()
        shares_SF, times_W2 = (
            part.view(shape)
            for part, shape in zip(sums_N.split([shape.numel() for shape in self._shapes]), self._shapes, strict=True)
        )
        columns = (shares_SF / self._world_size).T.tolist()
        ranks = tuple(RankTimes(*times) for times in times_W2.tolist())
        return StepFigures(self._steps, dict(zip(self._names, columns, strict=True)), closed_at, beside, ranks)
