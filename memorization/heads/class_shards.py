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
        dtypes = sorted({tensor.dtype for tensor in tensors}, key=lambda dtype: (-dtype.itemsize, str(dtype)))
        groups = [[place for place, tensor in enumerate(tensors) if tensor.dtype == dtype] for dtype in dtypes]
        # the widest numbers first, so that none lies across its own alignment
        packed_of_dtypes = [torch.cat([tensors[place].detach().flatten() for place in group]) for group in groups]
        packed_X = torch.cat([packed.view(torch.uint8) for packed in packed_of_dtypes])
        gathered_NX = packed_X.new_empty(self.world_size, packed_X.numel())
        dist.all_gather_single(gathered_NX.view(-1), packed_X, group=self._group)
        num_bytes = [packed.numel() * packed.element_size() for packed in packed_of_dtypes]
        rows: dict[int, Tensor] = {}
        for group, dtype, part_NX in zip(groups, dtypes, gathered_NX.split(num_bytes, 1), strict=True):
            sizes = [tensors[place].numel() for place in group]
            numbers = part_NX.reshape(-1).view(dtype).view(self.world_size, sum(sizes)).split(sizes, 1)
            rows |= {
                place: each.reshape(-1, *tensors[place].shape[1:]) for place, each in zip(group, numbers, strict=True)
            }
        return [rows[place] for place in range(len(tensors))]

    def gather_blocks(self, block: Tensor) -> Tensor:
        """Return the ranks' tensors of one shape behind one another: (N, …). No gradient."""
        gathered = block.new_empty(self.world_size, *block.shape)
        dist.all_gather_single(gathered.view(-1), block.contiguous().view(-1), group=self._group)
        return gathered

    def sum_own_rows(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum tensors (N·B, D) of one dtype over the ranks, and return this rank's rows of each: (B, D). One message."""
        packed_NX = torch.cat([tensor.reshape(self.world_size, -1) for tensor in tensors], 1)
        if packed_NX.device.type == "cpu":  # gloo's reduce-scatter is an all-reduce, which sends twice as much
            parts_NX = torch.empty_like(packed_NX)
            dist.all_to_all_single(parts_NX.view(-1), packed_NX.view(-1), group=self._group)
            own_X = parts_NX.sum(0)
        else:
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
