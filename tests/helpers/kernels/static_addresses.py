"""Where a CUDA graph's pool would put what a step allocates: the same places at every call, if nothing depends on values.

Memory comes from an arena that gives the first gap that is wide enough, as soon as what lay there is dropped. So an address
depends on the order of all allocations and drops, and on their sizes, as those of torch's caching allocator do.
"""

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

ALIGNMENT = 512
"""Bytes, as torch's caching allocator rounds sizes on a GPU."""


class Arena:
    """Addresses of storages by when they are first seen."""

    def __init__(self) -> None:
        self._live: dict[int, tuple[StorageWeakRef, int, int]] = {}

    def __reduce__(self) -> tuple[type["Arena"], tuple[()]]:
        """Another process gets an empty one."""
        return Arena, ()

    def addresses(self, values: Any) -> list[int]:
        """Of each tensor among some values, its first byte; those that are new get their place."""
        tensors = [each for each in tree_leaves(values) if isinstance(each, Tensor) and each.numel()]
        return [self._start(each) + each.storage_offset() * each.element_size() for each in tensors]

    def _start(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        self._live = {key: kept for key, kept in self._live.items() if not kept[0].expired()}
        reference = StorageWeakRef(storage)
        if reference.cdata not in self._live:
            size = -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
            self._live[reference.cdata] = reference, self._gap(size), size
        return self._live[reference.cdata][1]

    def _gap(self, size: int) -> int:
        start = 0
        for _, taken, length in sorted(self._live.values(), key=lambda kept: kept[1]):
            if taken - start >= size:
                break
            start = taken + length
        return start
