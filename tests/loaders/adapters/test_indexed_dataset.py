"""A sample keeps its canonical index through samplers, shuffling, workers, subsets and collate functions of any kind."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from rlpheads.loaders.adapters.indexed_dataset import IndexedDataset, collate_indexed


class Squares:
    """Samples of any form that hold the square of their position."""

    def __init__(self, form, num_samples=10):
        self.form, self.num_samples = form, num_samples

    def __len__(self):
        return self.num_samples

    def __getitem__(self, index):
        assert 0 <= index < self.num_samples
        return self.form(torch.tensor(index**2))


def one_tuple(value):
    return (value,)


def pair(value):
    return value, value + 1


def mapping(value):
    return {"value": value}


def bare(value):
    return value


def read(batch):
    """Return values and indices of a batch, whatever its form."""
    if isinstance(batch, dict):
        return batch["value"], batch["index"]
    return batch[0], batch[-1]


@pytest.mark.parametrize("form", [one_tuple, pair, mapping, bare])
@pytest.mark.parametrize("collate", [None, collate_indexed()], ids=["torch's own", "wrapped"])
def test_every_batch_holds_each_samples_own_index(form, collate):
    loader = DataLoader(IndexedDataset(Squares(form)), batch_size=4, shuffle=True, collate_fn=collate)
    seen = []
    for values, index in map(read, loader):
        assert index.dtype == torch.int64
        assert torch.equal(values, index**2)
        seen += index.tolist()
    assert sorted(seen) == list(range(10))


def test_workers_get_the_collate_function_too():
    loader = DataLoader(IndexedDataset(Squares(pair)), batch_size=5, num_workers=1, collate_fn=collate_indexed(as_text))
    assert list(loader)[1][0] == "25 26 36 37 49 50 64 65 81 82"
    assert list(loader)[1][1].tolist() == [5, 6, 7, 8, 9]


def as_text(samples):
    return " ".join(str(int(value)) for sample in samples for value in sample)


def test_a_subset_of_what_is_wrapped_keeps_the_indices_of_the_whole():
    subset = Subset(IndexedDataset(Squares(pair)), [7, 2])
    assert [sample[-1] for sample in subset] == [7, 2]


def test_a_dataset_that_reads_batches_at_once_is_asked_for_batches():
    class Batched(Squares):
        def __getitem__(self, index):
            raise AssertionError("one by one")

        def __getitems__(self, indices):
            return [{"value": torch.tensor(index**2)} for index in indices]

    (batch,) = DataLoader(IndexedDataset(Batched(mapping, 3)), batch_size=3)
    assert batch["value"].tolist() == [0, 1, 4]
    assert batch["index"].tolist() == [0, 1, 2]


@given(st.integers(-20, 20))
def test_an_index_from_the_end_is_told_as_the_position(index):
    dataset = IndexedDataset(TensorDataset(torch.arange(10)))
    if -10 <= index < 10:
        value, position = dataset[index]
        assert int(value) == position == index % 10
    else:
        with pytest.raises(IndexError, match=rf"index {index} is not in 0\.\.9"):
            dataset[index]


def test_collate_functions_can_be_pickled():
    assert pickle.loads(pickle.dumps(collate_indexed(as_text)))([(4, 5, 2)]) == ("4 5", torch.tensor([2]))


@pytest.mark.wrong("library")
def test_streams_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(TypeError, match="Stream has no __len__: a sample's index is its position"):
        IndexedDataset(Stream())


@pytest.mark.wrong("library")
def test_an_entry_of_that_name_is_not_overwritten():
    with pytest.raises(ValueError, match="an entry 'index' already: rename it"):
        IndexedDataset([{"index": 3}])[0]


@pytest.mark.wrong("library")
@pytest.mark.parametrize("sample", [(torch.zeros(2), torch.zeros(3)), {"value": 1}])
def test_samples_that_carry_no_index_are_told_to_be_wrapped(sample):
    with pytest.raises(ValueError, match="wrap the dataset in IndexedDataset"):
        collate_indexed()([sample])
