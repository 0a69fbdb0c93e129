"""A pool of memory for batches, reused once no tensor refers to a block any more."""

from __future__ import annotations

import weakref
from queue import Empty, SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class BatchMemory:
    """A pool of uint8 blocks, each reused only when no tensor refers to it any more.

    So a caller may keep any batch; fresh memory for every batch would cost the kernel's work of clearing it.
    """

    def __init__(self, shape: tuple[int, ...], *, pinned: bool) -> None:
        """Prepare.

        Args:
            shape: Of every block.
            pinned: Page-locked, for copies to a GPU.
        """
        self.shape = shape
        self._pinned = pinned
        self._free: SimpleQueue[NDArray[np.uint8]] = SimpleQueue()

    def take(self) -> Tensor:
        """Return a uint8 block with undefined content."""
        if self._pinned:
            # Torch's own pool of pinned memory also waits for copies to a device that are still under way.
            return torch.empty(self.shape, dtype=torch.uint8, pin_memory=True)
        try:
            block = self._free.get_nowait()
        except Empty:
            block = np.empty(self.shape, dtype=np.uint8)
        lent = block.view()  # the tensor and all views of it hold this object, and nothing else does
        weakref.finalize(lent, self._free.put, block).atexit = False
        return torch.from_numpy(lent)
