"""Whether what a checkpoint holds, or is to hold, is finite: hashes tell damage, and say nothing of NaN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from rlpheads.engine.distributed.launch import Launch


@torch.no_grad()
def nonfinite_tensors(state: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity, with the names that lead to them; one host read.

    Each tensor is read once, and nothing of its size is allocated.
    """
    named = [(name, tensor) for name, tensor in _tensors(state) if tensor.is_floating_point() and tensor.numel()]
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in named:
        by_device.setdefault(tensor.device, []).append((name, tensor))
    found: list[str] = []
    for pairs in by_device.values():
        extremes_P2 = torch.stack([torch.stack(torch.aminmax(tensor)).float() for _, tensor in pairs])
        finite_P = extremes_P2.isfinite().all(1).tolist()
        found += [name for (name, _), finite in zip(pairs, finite_P, strict=True) if not finite]
    return found


def nonfinite_at_ranks(state: Mapping[str, Any], launch: Launch) -> dict[int, list[str]]:
    """Return what `nonfinite_tensors` finds at every rank that finds any. Collective."""
    found: list[list[str]] = [[] for _ in range(launch.world_size)]
    dist.all_gather_object(found, nonfinite_tensors(state), group=launch.control)
    return {rank: names for rank, names in enumerate(found) if names}


def _tensors(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if isinstance(value, DTensor):
            yield f"{prefix}{key}", value.to_local()
        elif isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")
