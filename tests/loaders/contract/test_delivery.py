"""Delivery sends one batch ahead, and neither the position nor an error comes before its batch."""

from itertools import islice

import pytest
import torch

from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.delivery import BatchPrefetcher, deliver
from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.datasets import open_dataset


def loader_of(source, batch_size: int = 96, **options):
    return make_loader(
        "torch", source, Order(source.manifest.num_samples, batch_size, **options), CropSpec(8), train=True
    )


class Road:
    """Hands batches over as they are, and keeps a list of what happened in which order."""

    def __init__(self):
        self.events: list[str] = []

    def send(self, batch: Batch):
        number = sum("sent" in event for event in self.events)
        self.events.append(f"sent {number}")

        def hand_over() -> Batch:
            self.events.append(f"handed over {number}")
            return batch

        return hand_over


def indices(batches) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches]


def test_on_the_cpu_the_loader_is_returned_itself(digits):
    loader = loader_of(digits[0])
    assert deliver(loader, torch.device("cpu")) is loader


def test_each_batch_is_copied_before_the_one_in_front_is_yielded(digits):
    road = Road()
    loader = BatchPrefetcher(loader_of(digits[0], 400), road.send)
    for number, _ in enumerate(loader):
        road.events.append(f"used {number}")
    middle = ["sent 1", "handed over 0", "used 0", "sent 2", "handed over 1", "used 1"]
    assert road.events == ["sent 0", *middle, "handed over 2", "used 2"]
    assert len(loader) == 3


@pytest.mark.long
def test_position_counts_yielded_batches_and_a_resume_goes_on_from_there(digits):
    whole = indices(loader_of(digits[0]))
    for num_read in (0, 1, 5, 14):
        loader = BatchPrefetcher(loader_of(digits[0]), Road().send)
        before = indices(islice(loader, num_read))
        assert loader.state_dict() == {"epoch": 0, "consumed": 96 * num_read}
        resumed = BatchPrefetcher(loader_of(digits[0]), Road().send)
        resumed.load_state_dict(loader.state_dict())
        assert before + indices(resumed) == before + indices(loader) == whole


@pytest.mark.long
def test_epochs_follow_each_other_and_an_ended_one_yields_nothing(digits):
    plain, ahead = loader_of(digits[0]), BatchPrefetcher(loader_of(digits[0]), Road().send)
    for epoch in (0, 1):
        plain.set_epoch(epoch)
        ahead.set_epoch(epoch)
        assert indices(ahead) == indices(plain)
        assert indices(ahead) == []
    with pytest.raises(ValueError, match="no step begins after 7 samples"):
        ahead.set_epoch(1, 7)
    assert ahead.state_dict() == {"epoch": 1, "consumed": 14 * 96}


def test_an_error_waits_for_the_batches_in_front_of_it(write_tree):
    root = write_tree({f"{split}/{label}": ["1.png", "2.png"] for split in ("train", "val") for label in "ab"})
    (root / "train" / "b" / "1.png").write_bytes(b"no image")
    source, _ = open_dataset("imagefolder", root, seed=0)
    loader = BatchPrefetcher(loader_of(source, 2, shuffle=False), Road().send)
    batches = iter(loader)
    assert next(batches).index.tolist() == [0, 1]
    with pytest.raises(ImageReadError, match=r"^image 2 "):
        next(batches)
    assert loader.state_dict() == {"epoch": 0, "consumed": 2}
