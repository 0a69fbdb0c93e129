"""Any map-style dataset with the position of each sample beside it, which is what random labels and ledgers go by."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset, default_collate

INDEX = "index"
"""The key under which samples and batches that are mappings carry their indices."""


class SizedDataset(Protocol):
    """What can be wrapped: samples by position, and how many there are."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return a sample."""
        ...


class IndexedDataset(Dataset[Any]):
    """A dataset whose samples also carry their canonical index: the position in the dataset that is wrapped.

    A sample that is a tuple or list gets it behind its last part, a mapping under "index", anything else becomes
    (sample, index). torch's own collate function turns them into an int64 tensor of the batch; one of another kind is
    wrapped by `collate_indexed`. Samplers, shuffling and workers change nothing: wrap the whole training set, and take
    subsets of what is wrapped, so that a sample keeps its index and with it its random labels.

    Args:
        dataset: of torch, torchvision, Hugging Face, or anything with `__len__` and `__getitem__`.

    Raises:
        TypeError: the dataset has no length or no samples by position, as a stream has not.
    """

    def __init__(self, dataset: SizedDataset):
        missing = [name for name in ("__len__", "__getitem__") if not hasattr(dataset, name)]
        if missing:
            raise TypeError(
                f"{type(dataset).__name__} has no {' and no '.join(missing)}: a sample's index is its position, so the dataset "
                "must be map-style; give the samples of a stream an index of your own"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        position = self._position(index)
        return _with_index(self.dataset[position], position)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return the samples of a batch, all in one call where the wrapped dataset has one for it."""
        positions = [self._position(index) for index in indices]
        read_all = getattr(self.dataset, "__getitems__", None)
        samples = [self.dataset[each] for each in positions] if read_all is None else read_all(positions)
        return [_with_index(*each) for each in zip(samples, positions, strict=True)]

    def _position(self, index: int) -> int:
        """Return an index from either end as the position from the beginning, which alone names a sample."""
        position, num_samples = operator.index(index), len(self.dataset)
        if not -num_samples <= position < num_samples:
            raise IndexError(f"index {index} is not in 0..{num_samples - 1}")
        return position % num_samples


def collate_indexed(collate: Callable[[list[Any]], Any] = default_collate) -> Callable[[Sequence[Any]], Any]:
    """Return a collate function for samples of `IndexedDataset`, made from one for the samples that are wrapped.

    Its batches are those of `collate` with int64 indices (B,): a mapping has them under "index", a tuple or list behind its
    last part, anything else becomes (batch, index). A sample of one part is given to `collate` as that part.

    Args:
        collate: takes the list of a batch's samples; torch's own by default.
    """
    return partial(_collate, collate)  # workers can pickle it


def _collate(collate: Callable[[list[Any]], Any], samples: Sequence[Any]) -> Any:
    parts = [_without_index(sample) for sample in samples]
    batch = collate([sample for sample, _ in parts])
    return _with_index(batch, torch.tensor([index for _, index in parts], dtype=torch.int64))


def _with_index(sample: Any, index: Any) -> Any:
    if isinstance(sample, Mapping):
        if INDEX in sample:
            raise ValueError(f"these samples have an entry {INDEX!r} already: rename it before the dataset is wrapped")
        return {**sample, INDEX: index}
    if isinstance(sample, (tuple, list)):
        return (*sample, index)
    return sample, index


def _without_index(sample: Any) -> tuple[Any, int]:
    """Take a sample of `IndexedDataset` apart."""
    if isinstance(sample, Mapping):
        if INDEX not in sample:
            raise ValueError(f"a sample has no entry {INDEX!r}: wrap the dataset in IndexedDataset")
        return {name: value for name, value in sample.items() if name != INDEX}, sample[INDEX]
    *parts, index = sample
    if not isinstance(index, int):
        raise ValueError(
            f"a sample ends with {type(index).__name__}, not its index: wrap the dataset in IndexedDataset"
        )
    return (parts[0] if len(parts) == 1 else tuple(parts)), index
