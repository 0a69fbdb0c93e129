"""Normalisation equals torchvision's, in one fused step on the device."""

import pytest
import torch
from operator_counter import OperatorNames
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms.v2 import functional as F

from rlpheads.loaders.augment.normalize import Normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def all_bytes() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)


def test_every_byte_is_normalised_as_in_torchvision():
    ours = Normalize(MEAN, STD)(all_bytes())
    theirs = F.normalize(all_bytes().double() / 255, MEAN, STD)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)
    assert ours.dtype == torch.float32


def test_low_precision_is_rounded_once():
    ours = Normalize(MEAN, STD, dtype=torch.bfloat16)(all_bytes())
    assert torch.equal(ours, Normalize(MEAN, STD)(all_bytes()).to(torch.bfloat16))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_has_the_bits_of_one_multiply_add_and_leaves_the_bytes(memory_format, dtype):
    images = torch.randint(0, 256, (5, 3, 7, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    given = images.contiguous(memory_format=memory_format)
    normalize = Normalize(MEAN, STD, dtype=dtype)
    assert torch.equal(normalize(given), torch.addcmul(normalize.offset, images, normalize.scale).to(dtype))
    assert torch.equal(given, images)


def test_it_keeps_the_memory_format_and_the_checkpoint_clean():
    normalize = Normalize(MEAN, STD)
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert normalize(images).is_contiguous(memory_format=torch.channels_last)
    assert not normalize.state_dict()
    assert not list(normalize.parameters())


def test_it_never_waits_for_the_device():
    with FakeTensorMode():
        assert Normalize(MEAN, STD)(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)).shape == (2, 3, 4, 4)


def test_normalisation_is_one_operation_on_a_gpu():
    with FakeTensorMode():
        normalize, images = Normalize(MEAN, STD).to("cuda"), all_bytes().to("cuda")
        with OperatorNames() as operators:
            normalize(images)
    assert [name for name in operators.names if name.startswith("aten")] == ["aten::addcmul"]


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [((0.5,), STD, "mean is"), (MEAN, (0.2, 0.0, 0.2), "above 0"), (MEAN, (0.2, float("nan"), 0.2), "std is")],
)
def test_constants_that_make_no_sense_are_refused(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalize(mean, std)
