"""Figures of the training steps: summed on the device, averaged over the ranks, read on the host one step late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class PartialWindow(NamedTuple):
    """The steps of a window that is not closed yet: W ranks' sums of F figures, float32."""

    names: tuple[str, ...]
    steps: int
    sums_WF: Tensor


class Meters:
    """A window of steps whose figures are read without stopping the device.

    Each step adds this rank's share of each figure. `begin_read` starts the reduction of the window and its copy to
    the host; `finish_read`, called after the next step was issued, returns the averages.
    """

    def __init__(self, device: torch.device, world_size: int):
        self._device = device
        self._world_size = world_size
        self._names: tuple[str, ...] = ()
        self._sums = torch.zeros(0, device=device)
        self._steps = 0
        self._pending: _Read | None = None

    def add(self, shares: Mapping[str, Tensor]) -> None:
        """Add one step's figures (0-d tensors on the device); the names must be the same at every step."""
        values = torch.stack([shares[name].detach().float() for name in shares])
        if not self._names:
            self._names = tuple(shares)
            self._sums = torch.zeros_like(values)
        self._sums += values
        self._steps += 1

    def partial_window(self) -> PartialWindow | None:
        """Return the steps since the last window was closed, for a checkpoint; None if there are none. Collective."""
        if self._steps == 0:
            return None
        sums_WF = self._sums.new_empty(self._world_size, len(self._names))
        dist.all_gather(list(sums_WF.unbind()), self._sums)
        return PartialWindow(self._names, self._steps, sums_WF)

    def resume_window(self, window: PartialWindow, rank: int) -> None:
        """Go on with a window that a checkpoint stands in the middle of.

        Args:
            window: what `partial_window` returned, at this or another number of ranks.
            rank: this rank. It goes on with its own sums, to the last bit, or with its share of all of them.
        """
        self._names, self._steps = window.names, window.steps
        num_saved = len(window.sums_WF)
        if num_saved == self._world_size:
            self._sums = window.sums_WF[rank].to(self._device)
        else:
            self._sums = window.sums_WF.to(self._device).sum(0) / num_saved

    def begin_read(self, step: int, **beside: float) -> None:
        """Close the window at `step` and send its sums on their way to the host. Collective.

        Args:
            step: optimizer steps taken.
            beside: figures that the host knows at this moment, to be returned beside the averages.
        """
        if self._steps == 0:
            return
        self._pending = _Read(self._names, self._sums, self._steps * self._world_size, step, beside)
        self._sums = torch.zeros_like(self._sums)
        self._steps = 0

    def finish_read(self) -> tuple[int, dict[str, float]] | None:
        """Return the step and the averages of the window that was closed last, once; None if there is none."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        return pending.finish()


class _Read:
    """A reduction and a copy to the host that are under way."""

    def __init__(self, names: tuple[str, ...], sums: Tensor, count: int, step: int, beside: dict[str, float]):
        self._names, self._count, self._step, self._beside = names, count, step, beside
        self._work = dist.all_reduce(sums, async_op=True)
        self._host = sums
        self._copied: torch.cuda.Event | None = None
        if sums.is_cuda:
            self._work.wait()  # orders the copy behind the reduction on the device; the host goes on
            self._host = torch.empty_like(sums, device="cpu", pin_memory=True).copy_(sums, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def finish(self) -> tuple[int, dict[str, float]]:
        """Return the step and the averages; the device has had a step's time to get there."""
        if self._copied is not None:
            self._copied.synchronize()
        else:
            self._work.wait()
        averages = dict(zip(self._names, (self._host / self._count).tolist(), strict=True))
        return self._step, averages | self._beside
