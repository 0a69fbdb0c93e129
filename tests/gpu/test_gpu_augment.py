"""Augmentation and mixing on a real CUDA device: the numbers of the CPU, and no wait for the device."""

import pytest
import torch
from device_waits import no_device_waits

from rlpheads.loaders.augment.mixing import Mixer, MixSpec
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.augment.pipeline import Augment
from rlpheads.loaders.augment.spec import POLICIES, AugmentSpec, EraseSpec, PolicySpec
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.keyed_random import KeyedStream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="augments on a CUDA device, and there is none"),
]

COUNT = 64
IMAGES = torch.randint(0, 256, (COUNT, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
INDEX = torch.arange(COUNT) * 7


def augment_of(policy: str, device: str) -> Augment:
    """Return everything at once; a unit of its result is a level of 255."""
    spec = AugmentSpec(4, PolicySpec(policy), (0.4, 0.4, 0.4, 0.1), 8, EraseSpec(0.5))
    return Augment(spec, Normalize((0.0,) * 3, (1 / 255,) * 3), 0).to(device)


def test_random_numbers_are_those_of_the_cpu():
    host, device = KeyedStream(3, "noise"), KeyedStream(3, "noise").to("cuda")
    assert torch.equal(host.uniforms(2, INDEX, num_draws=9), device.uniforms(2, INDEX.cuda(), num_draws=9).cpu())


@pytest.mark.parametrize("policy", POLICIES)
def test_images_are_those_of_the_cpu_and_nothing_waits(policy):
    """Where products are rounded otherwise, a level more or less may be amplified by what follows."""
    module, images, index = augment_of(policy, "cuda"), IMAGES.cuda(), INDEX.cuda()
    module(images, index, 1, INDEX.numpy())
    with no_device_waits():
        ours = module(images, index, 1, INDEX.numpy())
    difference = (ours.cpu() - augment_of(policy, "cpu")(IMAGES, INDEX, 1)).abs()
    assert float((difference > 4).float().mean()) <= 2e-3


def test_mixing_is_that_of_the_cpu_and_nothing_waits():
    spec = MixSpec(mixup=0.8, cutmix=1.0)
    targets = INDEX % 10
    batch = Batch(IMAGES / 255, targets, INDEX, COUNT)
    expected = Mixer(spec, 0)(batch, 3, 0)
    mixer, on_device = Mixer(spec, 0), batch.to("cuda")
    with no_device_waits():
        mixed = mixer(on_device, 3, 0)
    torch.testing.assert_close(mixed.partners.weight.cpu(), expected.partners.weight)
    torch.testing.assert_close(mixed.images.cpu(), expected.images, rtol=1e-4, atol=1e-5)
