"""What a loop's own loader says of its samples: how many there are, and the index and class of each in a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rlpheads.loaders.adapters.indexed_dataset import INDEX, IndexedDataset

_WRAP = "wrap the dataset: DataLoader(IndexedDataset(dataset), …)"
_TARGETS = ("labels", "label", "targets", "target")


def count_samples(loader: Any) -> int:
    """Return N, the samples of the `IndexedDataset` that a loader reads, whatever lies between.

    Raises:
        ValueError: it reads none.
    """
    found = loader
    while not isinstance(found, IndexedDataset):
        found = getattr(found, "dataset", None)
        if found is None:
            raise ValueError(f"the training loader reads no IndexedDataset, so that its samples have no index: {_WRAP}")
    return len(found)


def index_and_targets(batch: Any) -> tuple[Tensor, Tensor]:
    """Return indices and classes of a batch of an `IndexedDataset`: int64 (B,) each.

    They are a tuple's last and last but one parts, or a mapping's "index" and "labels" (or "label", "targets", "target").

    Raises:
        ValueError: the batch has no such parts.
    """
    if isinstance(batch, Mapping):
        name = next((name for name in _TARGETS if name in batch), None)
        if INDEX in batch and name is not None:
            return batch[INDEX], batch[name]
        missing = f"{INDEX!r}" if INDEX not in batch else f"any of {', '.join(map(repr, _TARGETS))}"
        raise ValueError(f"a batch has entries {', '.join(map(repr, batch))}, and not {missing}: {_WRAP}")
    if isinstance(batch, (tuple, list)) and len(batch) >= 3:
        targets, index = batch[-2:]
        if isinstance(index, Tensor) and isinstance(targets, Tensor):
            return index, targets
    raise ValueError(f"a batch is {_describe(batch)}, and not (images, …, targets, indices): {_WRAP}")


def _describe(batch: Any) -> str:
    if isinstance(batch, (tuple, list)):
        return f"({', '.join(type(part).__name__ for part in batch)})"
    return type(batch).__name__
