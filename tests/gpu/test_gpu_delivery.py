"""Delivery on a real CUDA device: the same batches, two at a time, copied while the device computes."""

import time

import pytest
import torch
from device_waits import no_device_waits

from rlpheads.engine.gauges.clock import DeviceWait
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.delivery import deliver
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.datasets import open_dataset

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="copies to a CUDA device, and there is none"),
]


def loader_of(*, pin_memory: bool):
    source, _ = open_dataset("digits", seed=0)
    options = LoaderOptions(pin_memory=pin_memory)
    return make_loader("torch", source, Order(1437, 32, seed=1), CropSpec(64), train=True, options=options)


def busy(device: torch.device, cycles: int = 20_000_000) -> None:
    """Keep the device at work for about ten milliseconds."""
    with torch.cuda.device(device):
        torch.cuda._sleep(cycles)


@pytest.mark.parametrize("pin_memory", [True, False])
def test_batches_arrive_whole_though_the_device_lags_behind(pin_memory):
    """The device is kept busy, so that a missing wait or a memory given away too early would show as wrong pixels."""
    device = torch.device("cuda", 0)
    arrived = []
    for batch in deliver(loader_of(pin_memory=pin_memory), device):
        busy(device, 2_000_000)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        arrived.append((batch.images.clone(), batch.targets.clone(), batch.index.clone()))
        del batch
    expected = list(loader_of(pin_memory=False))
    assert len(arrived) == len(expected)
    for (images, targets, index), batch in zip(arrived, expected, strict=True):
        assert torch.equal(images.cpu(), batch.images)
        assert torch.equal(targets.cpu(), batch.targets)
        assert torch.equal(index.cpu(), batch.index)


def test_delivery_does_not_wait_for_the_device():
    device = torch.device("cuda", 0)
    batches = iter(deliver(loader_of(pin_memory=True), device))
    next(batches)
    with no_device_waits():
        busy(device)
        next(batches)


def test_waiting_is_what_the_device_misses_not_what_the_host_spends():
    device = torch.device("cuda", 0)
    wait = DeviceWait(device)
    busy(device, 1_000_000_000)  # about half a second
    with wait.measuring():
        time.sleep(0.1)
    torch.cuda.synchronize(device)
    assert wait.seconds < 0.01
    with wait.measuring():  # now it has nothing to do
        time.sleep(0.1)
    torch.cuda.synchronize(device)
    assert 0.09 < wait.seconds < 0.2
