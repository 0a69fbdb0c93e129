"""How a process loads its share of every batch: rank, workers, and what an unreadable image does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class LoaderOptions:
    """Which share of every batch this process loads, and how; none of it changes a sample or its crop.

    Attributes:
        rank: Which share, in 0..world_size-1.
        world_size: Number of shares.
        num_workers: Processes that decode; 0 decodes in this one.
        prefetch: Batches that each worker reads ahead.
        pin_memory: Copy into page-locked memory, for a GPU.
        keep_workers: Let the workers wait for the next epoch instead of starting them anew.
        on_error: What an unreadable image does: "raise" ends the iteration with its `ImageReadError`; "skip" makes it a
            padding row that `Batch.skipped` tells of.
        worker_silence_s: Seconds without a sign of life after which a worker process counts as frozen.

    Raises:
        ValueError: For a value out of its range.
    """

    rank: int = 0
    world_size: int = 1
    num_workers: int = 0
    prefetch: int = 2
    pin_memory: bool = False
    keep_workers: bool = True
    on_error: OnError = "raise"
    worker_silence_s: float = 30.0

    def __post_init__(self) -> None:
        if self.on_error not in get_args(OnError):
            raise ValueError(f"on_error is {self.on_error!r}; it must be one of {', '.join(get_args(OnError))}")
        least = {"world_size": 1, "num_workers": 0, "prefetch": 1}
        for name, least_value in least.items():
            if getattr(self, name) < least_value:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least_value}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}; it must be in 0..{self.world_size - 1}")
