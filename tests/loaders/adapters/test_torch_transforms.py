"""Cutting and resizing one image: torchvision's own pixels, whatever the box."""

import resource

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from rlpheads.loaders.adapters.torch_transforms import EvalTransform, resized_crop
from rlpheads.loaders.contract.crops import CropSpec


@st.composite
def images_and_boxes(draw):
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    box = top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left))
    pixels = torch.randint(
        0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(height)
    )
    return pixels.permute(2, 0, 1), box


@given(images_and_boxes(), st.integers(1, 40), st.booleans(), st.sampled_from(["bilinear", "bicubic"]))
def test_pixels_are_those_of_torchvision_bit_for_bit(image_and_box, side, by_channel, interpolation):
    image, box = image_and_box
    image = image.contiguous() if by_channel else image
    theirs = F.resized_crop(image, *box, [side, side], InterpolationMode(interpolation), antialias=True)
    assert torch.equal(resized_crop(image, box, side, interpolation), theirs)


def test_a_grey_view_is_resized_as_its_copy():
    grey = torch.arange(64, dtype=torch.uint8).view(1, 8, 8).expand(3, 8, 8)
    assert torch.equal(resized_crop(grey, (1, 2, 6, 5), 16), resized_crop(grey.clone(), (1, 2, 6, 5), 16))


def whole_then_cut(image: torch.Tensor, crop: CropSpec) -> torch.Tensor:
    """What evaluation is by definition: all of the image is resized, and its centre cut."""
    resized = F.resize(image, [crop.short_side], InterpolationMode(crop.interpolation), antialias=True)
    return F.center_crop(resized, [crop.image_size, crop.image_size])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(375, 500), (60, 900), (900, 60), (1, 1), (1, 16), (200, 200)])
def test_the_central_crop_of_an_ordinary_image_is_torchvisions_bit_for_bit(shape, interpolation):
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crop = CropSpec(64, interpolation=interpolation)
    assert torch.equal(EvalTransform(crop).make(image, None), whole_then_cut(image, crop))


@pytest.mark.parametrize(
    "crop",
    [CropSpec(64), CropSpec(96, crop_fraction=1.0), CropSpec(96, crop_fraction=1.0, interpolation="bicubic")],
)
@pytest.mark.parametrize("shape", [(1, 400), (4, 200), (200, 4), (8, 1000), (300, 7), (500, 20), (100, 5000)])
def test_the_central_crop_of_a_thin_image_shows_what_resizing_all_of_it_would(shape, crop):
    generator = torch.Generator().manual_seed(0)
    rough = torch.randint(0, 256, (1, 3, -(-shape[0] // 4), -(-shape[1] // 4)), generator=generator).float()
    image = torch.nn.functional.interpolate(rough, size=shape, mode="bilinear")[0].to(torch.uint8)
    ours, theirs = EvalTransform(crop).make(image, None), whole_then_cut(image, crop)
    assert ours.shape == theirs.shape
    difference = (ours.int() - theirs.int()).abs()
    is_exact = crop.short_side * max(shape) % min(shape) == 0
    assert difference.max() <= (1 if is_exact else 64)
    assert difference.float().mean() <= (0.1 if is_exact else 2)


@pytest.mark.wrong("file")
@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1)])
def test_a_thin_image_takes_no_more_memory_than_its_crop_needs(shape):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    square = EvalTransform(CropSpec(224)).make(torch.full((3, *shape), 99, dtype=torch.uint8), None)
    assert square.shape == (3, 224, 224)
    assert square.eq(99).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes; all of it is 20 GB"
