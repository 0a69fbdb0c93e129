"""The features of a clean pass, kept to refit heads to them: what every tap says of every sample, with weights at rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from rlpheads.loaders.contract.batch import Batch


class CleanFeatures:
    """Tables of features, one for each tap, as the heads see them.

    Args:
        num_samples: N.
        dims: width D of each tap.
        norm: normalise each row (layer norm without parameters), as the run's heads do.
        device: where the tables live: 4·N·ΣD bytes.
    """

    def __init__(self, num_samples: int, dims: Sequence[int], *, norm: bool, device: torch.device):
        self._norm = norm
        self._num_samples = num_samples
        # One row more than there are samples: padding rows are written there, so that nothing is read on the host.
        self._tables = [torch.zeros(num_samples + 1, dim, device=device) for dim in dims]
        self._is_read = torch.zeros(num_samples + 1, dtype=torch.int32, device=device)

    def add(self, batch: Batch, taps: Sequence[Tensor]) -> None:
        """Take in the taps (B, D) of a batch."""
        row_B = torch.where(batch.index >= 0, batch.index, self._num_samples)
        self._is_read[row_B] = 1
        for table, features_BD in zip(self._tables, taps, strict=True):
            values_BD = features_BD.float()
            table[row_B] = F.layer_norm(values_BD, values_BD.shape[-1:]) if self._norm else values_BD

    def merge(self, world_size: int) -> None:
        """Gather the rows of all ranks at every rank: each was read at one and is zero at the others. Collective."""
        if world_size > 1:
            for tensor in (*self._tables, self._is_read):
                dist.all_reduce(tensor)

    @property
    def read_N(self) -> Tensor:  # noqa: N802 - shape suffix
        """Which samples were read, bool (N,)."""
        return self._is_read[:-1] > 0

    def tables(self) -> list[Tensor]:
        """Return the features of the samples that were read, fp32 (n, D) for each tap."""
        read_N = self.read_N
        return [table[:-1][read_N] for table in self._tables]
