"""Whether the ranks' replicas are the same: sums over the bits of the weights, gathered and read one step late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from rlpheads.engine.gauges.host_copy import HostCopy

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def bit_sum(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of the bits of tensors, read as integers and wrapped to int64 (): any one change of a number shows.

    Every number is read once and nothing as large is allocated.
    """
    sums = [tensor.detach().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors]
    return torch.stack(sums).sum()


class ReplicaComparison:
    """Compares what should be the same at all ranks.

    Args:
        world_size: number of ranks.
    """

    def __init__(self, world_size: int):
        self._world_size = world_size
        self._pending: tuple[int, tuple[str, ...], HostCopy] | None = None

    def begin(self, step: int, replicated: Mapping[str, Iterable[Tensor]]) -> None:
        """Start to compare the tensors of each part as they are after `step` steps, if there are any. Collective."""
        if not replicated:  # heads that are sharded, on a frozen network
            return
        sums_P = torch.stack([bit_sum(tensors) for tensors in replicated.values()])
        sums_WP = sums_P.new_empty(self._world_size, len(sums_P))
        work = dist.all_gather(list(sums_WP.unbind()), sums_P, async_op=True)
        assert work is not None
        self._pending = step, tuple(replicated), HostCopy(work, sums_WP)

    def finish(self) -> tuple[int, dict[int, list[str]]] | None:
        """Return the step of the comparison under way and, by rank, the parts that differ there; None if there is none."""
        if self._pending is None:
            return None
        (step, names, copy), self._pending = self._pending, None
        differing: dict[int, list[str]] = {}
        for name, sums_W in zip(names, copy.read().T.tolist(), strict=True):
            usual, _ = Counter(sums_W).most_common(1)[0]  # of equally many, the first rank's
            for rank, value in enumerate(sums_W):
                if value != usual:
                    differing.setdefault(rank, []).append(name)
        return step, differing
