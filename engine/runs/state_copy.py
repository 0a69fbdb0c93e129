"""A copy of a training's state on the host, in the same memory at every save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class StateCopy:
    """Copies of the states of a run, one at a time: the next overwrites the one before.

    As large as the state; page-locked where it comes from a GPU, so that the copies run beside each other. torch's own stager
    (`torch.distributed.checkpoint.staging`) copies storages, which DTensors have none of.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[Any, ...], Tensor] = {}

    @torch.no_grad()
    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Copy tensors, sharded or not, nested in mappings and lists; return when all of them are there."""
        copied = {name: self._copy(value, (name,)) for name, value in state.items()}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        return copied

    def _copy(self, value: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(value, DTensor):
            return self._copy_shard(value, path)
        if isinstance(value, Tensor):
            return self._copy_tensor(value, path)
        if isinstance(value, Mapping):
            return {key: self._copy(each, (*path, key)) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._copy(each, (*path, position)) for position, each in enumerate(value))
        return value

    def _copy_tensor(self, tensor: Tensor, path: tuple[Any, ...]) -> Tensor:
        memory = self._memory.get(path)
        if memory is None or (memory.shape, memory.dtype) != (tensor.shape, tensor.dtype):
            memory = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._memory[path] = memory
        return memory.copy_(tensor, non_blocking=True)

    def _copy_shard(self, shard: DTensor, path: tuple[Any, ...]) -> DTensor:
        local = shard.to_local()
        shape, stride = shard.shape, shard.stride()
        copied = DTensor.from_local(
            local, shard.device_mesh, shard.placements, run_check=False, shape=shape, stride=stride
        )
        copied._local_tensor = self._copy_tensor(local, path)  # from_local would move it to the mesh's device again
        return copied
