"""Cutting and resizing one image: torchvision's own pixels, whatever the box."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from rlpheads.loaders.adapters.torch_transforms import resized_crop


@st.composite
def images_and_boxes(draw):
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    box = top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left))
    pixels = torch.randint(
        0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(height)
    )
    return pixels.permute(2, 0, 1), box


@given(images_and_boxes(), st.integers(1, 40), st.booleans())
def test_pixels_are_those_of_torchvision_bit_for_bit(image_and_box, side, by_channel):
    image, box = image_and_box
    image = image.contiguous() if by_channel else image
    assert torch.equal(resized_crop(image, box, side), F.resized_crop(image, *box, [side, side], antialias=True))


def test_a_grey_view_is_resized_as_its_copy():
    grey = torch.arange(64, dtype=torch.uint8).view(1, 8, 8).expand(3, 8, 8)
    assert torch.equal(resized_crop(grey, (1, 2, 6, 5), 16), resized_crop(grey.clone(), (1, 2, 6, 5), 16))
