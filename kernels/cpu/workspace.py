"""Workspace buffer reuse: a pool of large CPU buffers, each of which returns to it when its last tensor is freed.

Memory fresh from the operating system costs a page fault every 4 KiB, at B = 64 and K = 100,000 a third of a loss's whole
time; torch's CPU allocator gives large tensors back at once and pays that each step. Here a buffer returns to the pool when
the last tensor on it is freed (after backward, or when the gradient is set to None), and the next request of its size
takes it from there. Two live tensors never share a buffer.
"""

import weakref
from collections import deque
from math import prod

import torch
from torch import Tensor

MIN_BYTES = 2**20
"""Smaller tensors come from torch: the C library keeps their memory itself."""

MAX_MISSES = 64
"""Requests that a free buffer does not fit before its memory is given back to the system."""


class Workspace:
    """A pool of free buffers; thread-safe."""

    def __init__(self) -> None:
        self._free: deque[tuple[Tensor, int]] = deque()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Like `torch.empty` on the CPU: a contiguous, uninitialised tensor, whose memory returns to the pool."""
        num_bytes = prod(shape) * dtype.itemsize
        if num_bytes < MIN_BYTES:
            return torch.empty(shape, dtype=dtype)
        buffer = self._take(num_bytes)
        array = buffer.numpy()[:num_bytes]  # torch keeps this array as long as any tensor on it lives
        weakref.finalize(array, self._free.append, (buffer, MAX_MISSES)).atexit = False
        return torch.from_numpy(array).view(dtype).view(shape)

    @property
    def free_bytes(self) -> int:
        """Bytes of the free buffers."""
        return sum(buffer.numel() for buffer, _ in list(self._free))

    def _take(self, num_bytes: int) -> Tensor:
        """A free buffer that is large enough and at most a quarter larger, or a new one."""
        for _ in range(len(self._free)):
            try:
                buffer, misses_left = self._free.popleft()
            except IndexError:  # another thread took it
                break
            if num_bytes <= buffer.numel() <= num_bytes * 5 // 4:
                return buffer
            if misses_left > 1:
                self._free.append((buffer, misses_left - 1))
        return torch.empty(num_bytes, dtype=torch.uint8)


WORKSPACE = Workspace()
"""The pool of the process: later calls, of any head, find its buffers."""
