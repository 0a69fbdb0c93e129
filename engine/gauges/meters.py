"""Figures of the training steps: kept on the device, averaged over the ranks, read on the host one step late."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from rlpheads.engine.gauges.host_copy import HostCopy


@dataclass(frozen=True)
class StepFigures:
    """The figures of some steps, on the host.

    Attributes:
        steps: number of each step, from 1, in order.
        figures: by name the figure of each step, the mean over the ranks.
        closed_at: optimizer steps taken when their window was closed.
        beside: figures that the host knew then.
    """

    steps: tuple[int, ...]
    figures: Mapping[str, list[float]]
    closed_at: int
    beside: Mapping[str, float]


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

    def __init__(self, device: torch.device, world_size: int):
        self._device = device
        self._world_size = world_size
        self._names: tuple[str, ...] = ()
        self._steps: tuple[int, ...] = ()
        self._shares: list[Tensor] = []
        self._pending: _Read | None = None

    def add(self, step: int, shares: Mapping[str, Tensor]) -> None:
        """Add the figures of step number `step` (0-d tensors on the device).

        A window that was resumed with other figures than the step's, by whoever wrote that checkpoint, begins anew.
        """
        if self._names != tuple(shares):
            self._names, self._steps, self._shares = tuple(shares), (), []
        self._shares.append(torch.stack([shares[name].detach().float() for name in self._names]))
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
        return _Read(self._names, torch.stack(self._shares), self._steps, self._world_size).finish(self._steps[-1], {})

    def begin_read(self, step: int, **beside: float) -> None:
        """Close the window at `step` and send its figures on their way to the host. Collective.

        Args:
            step: optimizer steps taken.
            beside: figures that the host knows at this moment, to be returned beside the steps'.
        """
        if not self._steps:
            return
        self._pending = _Read(self._names, torch.stack(self._shares), self._steps, self._world_size)
        self._closed_at, self._beside = step, beside
        self._steps, self._shares = (), []

    def finish_read(self) -> StepFigures | None:
        """Return the window that was closed last, once; None if there is none."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        return pending.finish(self._closed_at, self._beside)


class _Read:
    """A reduction and a copy to the host that are under way."""

    def __init__(self, names: tuple[str, ...], shares_SF: Tensor, steps: tuple[int, ...], world_size: int):
        self._names, self._steps, self._world_size = names, steps, world_size
        work = dist.all_reduce(shares_SF, async_op=True)
        assert work is not None
        self._copy = HostCopy(work, shares_SF)

    def finish(self, closed_at: int, beside: Mapping[str, float]) -> StepFigures:
        """Return the figures; the device has had a step's time to get there."""
        columns = (self._copy.read().double() / self._world_size).T.tolist()
        return StepFigures(self._steps, dict(zip(self._names, columns, strict=True)), closed_at, beside)
