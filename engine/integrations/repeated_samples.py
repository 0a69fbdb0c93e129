"""Ledgers of several ranks whose sampler gave some samples to more than one, as torch's distributed sampler does."""

from __future__ import annotations

import torch
import torch.distributed as dist

from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import SEEN


@torch.no_grad()
def merge_repeated(ledger: Ledger) -> None:
    """Merge the ranks' ledgers in place: of a sample that several recorded, the row is that of the first rank. Collective.

    Its count is the number of times that it was trained on, over all ranks. Without ranks nothing changes.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    rows = ledger.tensors()
    rank = dist.get_rank()
    owner_N = torch.where(rows["status"] == SEEN, rank, dist.get_world_size()).to(torch.int32)
    dist.all_reduce(owner_N, op=dist.ReduceOp.MIN)
    is_others_N = owner_N != rank
    for name, values in rows.items():
        if name != "count":
            values[is_others_N] = 0
        dist.all_reduce(values)
