"""Whether what a checkpoint holds, or is to hold, is finite: hashes tell damage, and say nothing of NaN."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlpheads.memorization.heads.class_shards import is_dtensor

_MEASURED = ("ledger", "window")
_GROUP_BYTES = 2**28
_MOST_NAMED = 3


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


class NonfiniteStateError(RuntimeError):
    """A state is not finite, and is not to be used or saved.

    Attributes:
        step: optimizer steps that led to it.
        where: the names of what is not finite, and at which rank if others are finite.
    """

    def __init__(self, step: int, where: str):
        super().__init__(f"not finite after step {step}{where}")
        self.step = step


def check_state_finite(state: Mapping[str, Any], step: int, group: dist.ProcessGroup) -> None:
    """Look at the state of every rank, but for rows and figures of single steps. Collective over a gloo group.

    Raises:
        NonfiniteStateError: something of it is not finite, at whichever rank: all ranks raise the same.
    """
    found: list[list[str]] = [[] for _ in range(dist.get_world_size(group))]
    looked_at = {name: value for name, value in state.items() if name not in _MEASURED}
    dist.all_gather_object(found, nonfinite_tensors(looked_at), group=group)
    if any(found):
        rank, names = next((rank, names) for rank, names in enumerate(found) if names)
        where = "" if all(found) else f" at rank {rank}"
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        raise NonfiniteStateError(step, f"{where}: {', '.join(names[:_MOST_NAMED])}{more}")


def nonfinite_entries(checkpoint: Path) -> list[str]:
    """Return the names of a checkpoint's tensors that hold NaN or infinity, but for rows and figures of single steps.

    They are read in groups of at most 256 MiB, or one by one where one is larger; no other process takes part.

    Raises:
        MetadataError: the metadata asks for what is no part of a checkpoint.
    """
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata  # a run begins without it

    from rlpheads.engine.runs.checkpoint_metadata import MetadataError, read_metadata

    found: list[str] = []
    group: dict[str, Tensor] = {}
    entries = read_metadata(checkpoint).state_dict_metadata
    num_bytes = sum(path.stat().st_size for path in checkpoint.iterdir())
    for name, entry in entries.items():
        if not isinstance(entry, TensorStorageMetadata) or name.split(".")[0] in _MEASURED:
            continue
        if entry.properties.dtype.is_floating_point:
            if sum(tensor.nbytes for tensor in group.values()) > _GROUP_BYTES:
                found += _nonfinite_group(checkpoint, group)
                group = {}
            if entry.size.numel() > num_bytes:
                raise MetadataError(f"{name} is larger than all files")
            group[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    return found + _nonfinite_group(checkpoint, group)


def _nonfinite_group(checkpoint: Path, group: dict[str, Tensor]) -> list[str]:
    from rlpheads.engine.runs.checkpoint_metadata import fill_state

    if not group:
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is: this process reads all
        fill_state(checkpoint, dict(group), no_dist=True)
    return nonfinite_tensors(group)


def _tensors(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if is_dtensor(value):
            yield f"{prefix}{key}", value.to_local()
        elif isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")
