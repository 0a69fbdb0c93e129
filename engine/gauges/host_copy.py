"""A tensor of the device on its way to the host, behind a message between the ranks; the host waits when it reads."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class HostCopy:
    """The copy of a tensor that a collective fills.

    Args:
        work: the collective, under way.
        filled: what it fills; nobody else may change it.
    """

    def __init__(self, work: dist.Work, filled: Tensor):
        self._work = work
        self._host = filled
        self._copied: torch.cuda.Event | None = None
        if filled.is_cuda:
            work.wait()  # orders the copy behind the collective on the device; the host goes on
            self._host = torch.empty_like(filled, device="cpu", pin_memory=True)
            self._host.copy_(filled, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> Tensor:
        """Wait for the copy, and return it."""
        if self._copied is not None:
            self._copied.synchronize()
        else:
            self._work.wait()
        return self._host
