"""Global memory: the tensors of a launch at their own 64-bit addresses; everything else is out of bounds."""

import ctypes
from collections import Counter

import numpy as np
import torch

from rlpheads.kernels.tools.ptx.checked_memory import KernelError
from rlpheads.kernels.tools.ptx.formats import Array, unsigned


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
        values = np.zeros(len(addresses), unsigned(itemsize))
        for start, stop, chosen in self._split(addresses, itemsize):
            self.read[start] += len(values[chosen]) * itemsize
            values[chosen] = _cells(start, stop, itemsize)[_places(addresses[chosen], start, itemsize)]
        return values

    def store(self, addresses: Array, values: Array) -> None:
        """Write one number at each address."""
        itemsize = values.dtype.itemsize
        for start, stop, chosen in self._split(addresses, itemsize):
            self.written[start] += len(values[chosen]) * itemsize
            _cells(start, stop, itemsize)[_places(addresses[chosen], start, itemsize)] = values[chosen]

    def read_once(self, scale: float) -> float:
        """Bytes read if every tensor is read from memory at most once, of `scale` times as many blocks."""
        sizes = {start: stop - start for start, stop in self._regions}
        return sum(min(scale * num_bytes, sizes[start]) for start, num_bytes in self.read.items())

    def _split(self, addresses: Array, itemsize: int) -> list[tuple[int, int, Array | slice]]:
        """Regions and which addresses lie in each.

        Raises:
            KernelError: one lies in none, or is no multiple of its size (PTX ISA, 6.4.1.1).
        """
        if (addresses % itemsize).any():
            raise KernelError(
                f"global address {int(addresses[addresses % itemsize != 0][0]):#x} is no multiple of {itemsize}"
            )
        left: Array = np.ones(len(addresses), bool)
        found: list[tuple[int, int, Array | slice]] = []
        for start, stop in self._regions:
            inside = left & (addresses >= start) & (addresses <= stop - itemsize)
            if inside.all():
                return [(start, stop, slice(None))]
            if inside.any():
                found.append((start, stop, inside))
                left &= ~inside
        if left.any():
            raise KernelError(f"global address {int(addresses[left][0]):#x} is out of bounds")
        return found


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last byte of a view, +1."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _cells(start: int, stop: int, itemsize: int) -> Array:
    first = start & ~15
    num = (stop - first) // itemsize
    return np.frombuffer(memoryview((ctypes.c_uint8 * (num * itemsize)).from_address(first)), unsigned(itemsize))


def _places(addresses: Array, start: int, itemsize: int) -> Array:
    return (addresses - (start & ~15)) // itemsize
