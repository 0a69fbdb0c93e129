"""A split of the images as a pass over it uses it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlpheads.loaders.contract.loader import Loader
from rlpheads.memorization.records.ledger import Ledger


@dataclass(frozen=True)
class Split:
    """What a pass over a split reads and fills.

    Attributes:
        loader: this rank's batches.
        table_MN: random labels of every sample, int32 (M, N); the audit heads' draws come last.
        ledger: the record of every sample, filled in place.
    """

    loader: Loader
    table_MN: Tensor
    ledger: Ledger
