"""Global memory: the tensors of a launch at their own 64-bit addresses; everything else is out of bounds."""

import ctypes
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch

from rlpheads.kernels.tools.ptx.checked_memory import KernelError
from rlpheads.kernels.tools.ptx.formats import Array


class GlobalMemory:
    """What a kernel may touch; memory that nobody touched costs none, since the system maps it at first use."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = tensors
        self._regions: list[tuple[int, int]] = []
        self.read: Counter[int] = Counter()
        self.written: Counter[int] = Counter()
        """Bytes that threads asked for, by the first address of a tensor."""
        for start, stop in sorted(_extent(tensor) for tensor in tensors if tensor.numel()):
            if self._regions and start < self._regions[-1][1]:
                self._regions[-1] = self._regions[-1][0], max(stop, self._regions[-1][1])
            else:
                self._regions.append((start, stop))

    def load(self, addresses: Array, itemsize: int) -> Array:
        """Read one number at each address."""
        values = np.zeros(addresses.shape, f"u{itemsize}")
        for cells, chosen, places in self._split(addresses, itemsize, self.read):
            values[chosen] = cells[places]
        return values

    def store(self, addresses: Array, values: Array) -> None:
        """Write one number at each address."""
        for cells, chosen, places in self._split(addresses, values.dtype.itemsize, self.written):
            cells[places] = values[chosen]

    def size(self, start: int) -> int:
        """Bytes of the tensor that begins at an address."""
        return dict(self._regions)[start] - start

    def _split(self, addresses: Array, size: int, counter: Counter[int]) -> Iterator[tuple[Array, Array, Array]]:
        """Numbers of each region, which addresses lie in it, and where.

        Raises:
            KernelError: one lies in none, or is no multiple of its size (PTX ISA, 6.4.1.1).
        """
        if (addresses % size).any():
            raise KernelError(f"global address {int(addresses[addresses % size != 0][0]):#x} is no multiple of {size}")
        left = np.ones(addresses.shape, bool)
        for start, stop in self._regions:
            chosen = left & (addresses >= start) & (addresses <= stop - size)
            if chosen.any():
                counter[start] += int(chosen.sum()) * size
                first = start & ~15
                raw = (ctypes.c_uint8 * ((stop - first) // size * size)).from_address(first)
                yield np.frombuffer(memoryview(raw), f"u{size}"), chosen, (addresses[chosen] - first) // size
                left &= ~chosen
        if left.any():
            raise KernelError(f"global address {int(addresses[left][0]):#x} is out of bounds")


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last byte of a view, +1."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
