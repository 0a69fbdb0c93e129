"""Classes sharded over ranks: which range of every head's classes a rank holds, and the messages between the ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# Their names before torch 2.14, which warns of them.
_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_into = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def is_dtensor(value: object) -> TypeGuard[DTensor]:
    """Whether a value is a DTensor: none is before somebody loads them, which takes half as long as torch itself."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


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

    def gather_blocks(self, block: Tensor) -> Tensor:
        """Return the ranks' tensors of one shape (F, …), in their order: (N, F, …). No gradient."""
        gathered = block.new_empty(self.world_size * len(block), *block.shape[1:])
        _gather_into(gathered, block.contiguous(), group=self._group)
        return gathered.view(self.world_size, *block.shape)

    def sum_own_rows(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum tensors (N·B, D) of one dtype over the ranks, and return this rank's rows of each: (B, D). One message."""
        packed_GX = torch.cat(list(tensors), 1) if len(tensors) > 1 else tensors[0].contiguous()
        if packed_GX.device.type == "cpu":  # gloo's reduce-scatter is an all-reduce, which sends twice as much
            parts_GX = torch.empty_like(packed_GX)
            dist.all_to_all_single(parts_GX, packed_GX, group=self._group)
            own_BX = parts_GX.unflatten(0, (self.world_size, -1)).sum(0)
        else:
            own_BX = packed_GX.new_empty(len(packed_GX) // self.world_size, packed_GX.shape[1])
            _reduce_scatter_into(own_BX, packed_GX, group=self._group)
        return list(own_BX.split([tensor.shape[1] for tensor in tensors], 1)) if len(tensors) > 1 else [own_BX]

    def range_of(self, whole_KX: Tensor) -> Tensor:
        """Return this rank's range of a tensor (K, …): a view of it."""
        return whole_KX[slice(*self.start_and_stop(len(whole_KX)))]

    def begin_range_sum(self, whole_KX: Tensor) -> Callable[[], Tensor]:
        """Begin to sum contiguous tensors (K, …) over the ranks, none of whose ranges is empty.

        Returns:
            What waits for it and returns this rank's range of the sum, in memory of its own; to be called once. On a CPU the
            ranks are summed in their order.
        """
        own = self.range_of(whole_KX)
        if self._are_equal(whole_KX):
            summed = torch.empty_like(own)
            work: Any = _reduce_scatter_into(summed.view(-1), whole_KX.view(-1), group=self._group, async_op=True)
            return lambda: (work.wait(), summed)[1]
        received = {other.rank: torch.empty_like(own) for other in self._others}
        works = self._exchange({other.rank: other.range_of(whole_KX) for other in self._others}, received)

        def end() -> Tensor:
            _wait(works)
            first, second, *others = (part for _, part in sorted({**received, self.rank: own}.items()))
            summed = second.add_(first) if first is own else first.add_(second)
            for part in others:
                summed.add_(part)
            return summed

        return end

    def begin_range_gather(self, whole_KX: Tensor) -> Callable[[], None]:
        """Begin to fill contiguous tensors (K, …), of which every rank has its range, with those of the others; none is empty.

        Returns:
            What waits for it.
        """
        own = self.range_of(whole_KX)
        if self._are_equal(whole_KX):
            works = [_gather_into(whole_KX.view(-1), own.view(-1), group=self._group, async_op=True)]
        else:
            others = self._others
            works = self._exchange(
                {other.rank: own for other in others}, {other.rank: other.range_of(whole_KX) for other in others}
            )
        return lambda: _wait(works)

    def sum_over_ranks(self, tensor: Tensor) -> None:
        """Sum a tensor over the ranks, in place."""
        dist.all_reduce(tensor, group=self._group)

    def as_dtensor(self, local: Tensor, num_classes: int) -> DTensor:
        """View what this rank holds of a tensor (K, …) as the whole: a DTensor, `Shard(0)`, on the same memory.

        Raises:
            ValueError: the shards have no mesh.
        """
        from torch.distributed.tensor import DTensor, Shard

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

    @property
    def _others(self) -> list[ClassShards]:
        return [replace(self, rank=rank) for rank in range(self.world_size) if rank != self.rank]

    def _are_equal(self, whole_KX: Tensor) -> bool:
        """Whether collectives, which take equal parts, move the ranges; gloo's take up to twice the time of single messages."""
        return whole_KX.device.type != "cpu" and len(whole_KX) % self.world_size == 0

    def _exchange(self, sent: Mapping[int, Tensor], received: Mapping[int, Tensor]) -> list[Any]:
        """Begin to send each rank a tensor and to receive one of it."""
        return dist.batch_isend_irecv(
            [
                dist.P2POp(operation, tensor, group=self._group, group_peer=rank)
                for operation, tensors in ((dist.isend, sent), (dist.irecv, received))
                for rank, tensor in tensors.items()
            ]
        )


def _wait(works: Sequence[Any]) -> None:
    for work in works:
        work.wait()
