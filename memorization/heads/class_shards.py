"""Classes sharded over ranks: which range of every head's classes a rank holds, and how rows travel between the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard


@dataclass(frozen=True)
class ClassShards:
    """The ranks that hold a head's classes, one contiguous range each, in the order of the ranks.

    Ranges are those of DTensor's `Shard(0)`: ceil(K/N) classes each, fewer at the last rank that has any, none behind it.

    Attributes:
        rank: this rank.
        world_size: number of ranks, N.
        mesh: the one-dimensional device mesh of the data-parallel ranks, whose group the messages take; None: the default
            group, and no DTensor views of what is held here.
    """

    rank: int
    world_size: int
    mesh: DeviceMesh | None = None

    @classmethod
    def of_mesh(cls, mesh: DeviceMesh) -> ClassShards:
        """Shard the classes over the ranks of a one-dimensional mesh."""
        return cls(mesh.get_local_rank(), mesh.size(), mesh)

    def start_and_stop(self, num_classes: int) -> tuple[int, int]:
        """Return the first class of this rank's range, and the one behind its last; equal where the range is empty."""
        size = -(-num_classes // self.world_size)
        start = min(self.rank * size, num_classes)
        return start, min(start + size, num_classes)

    def has_empty_range(self, num_classes: int) -> bool:
        """Whether a rank holds no class."""
        size = -(-num_classes // self.world_size)
        return size * (self.world_size - 1) >= num_classes

    def gather_rows(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows of all ranks, in their order, of tensors (B, …): (N·B, …) each. One message; no gradient.

        Every rank gives the same B rows (padding fills a rank's up), widths and dtypes.
        """
        # the widest numbers first, so that none lies across its own alignment
        order = sorted(range(len(tensors)), key=lambda place: -tensors[place].element_size())
        packed = torch.cat([_as_bytes(tensors[place].detach()) for place in order])
        gathered_NX = packed.new_empty(self.world_size, packed.numel())
        dist.all_gather_single(gathered_NX.view(-1), packed, group=self._group)
        sizes = [tensors[place].numel() * tensors[place].element_size() for place in order]
        parts = dict(zip(order, gathered_NX.split(sizes, 1), strict=True))
        return [_from_bytes(parts[place], tensor) for place, tensor in enumerate(tensors)]

    def gather_blocks(self, block: Tensor) -> Tensor:
        """Return the ranks' tensors of one shape behind one another: (N, …). No gradient."""
        gathered = block.new_empty(self.world_size, *block.shape)
        dist.all_gather_single(gathered.view(-1), block.contiguous().view(-1), group=self._group)
        return gathered

    def sum_own_rows(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum tensors (N·B, D) of one dtype over the ranks, and return this rank's rows of each: (B, D). One message."""
        packed_NX = torch.cat([tensor.reshape(self.world_size, -1) for tensor in tensors], 1)
        own_X = packed_NX.new_empty(packed_NX.shape[1])
        dist.reduce_scatter_single(own_X, packed_NX.view(-1), group=self._group)
        widths = [prod(tensor.shape[1:]) for tensor in tensors]
        num_rows = len(tensors[0]) // self.world_size
        parts = own_X.split([num_rows * width for width in widths])
        return [part.view(num_rows, *tensor.shape[1:]) for part, tensor in zip(parts, tensors, strict=True)]

    def sum_over_ranks(self, tensor: Tensor) -> None:
        """Sum a tensor over the ranks, in place."""
        dist.all_reduce(tensor, group=self._group)

    def as_dtensor(self, local: Tensor, num_classes: int) -> DTensor:
        """View what this rank holds of a tensor (K, …) as the whole: a DTensor, `Shard(0)`, on the same memory.

        Raises:
            ValueError: the shards have no mesh.
        """
        if self.mesh is None:
            raise ValueError(
                "these shards have no device mesh, and DTensors need one: make them by ClassShards.of_mesh"
            )
        shape = torch.Size((num_classes, *local.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(local, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    @property
    def _group(self) -> Any:
        return None if self.mesh is None else self.mesh.get_group()


def _as_bytes(tensor: Tensor) -> Tensor:
    # cloned: a single row that is cut out of a matrix counts as contiguous whatever its strides, and has no view as bytes
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def _from_bytes(bytes_NX: Tensor, like_BX: Tensor) -> Tensor:
    """Read what the ranks sent as rows of a tensor (B, …) of theirs."""
    return bytes_NX.contiguous().view(-1).view(like_BX.dtype).view(-1, *like_BX.shape[1:])
