"""The whole way from bytes to the model's input."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from operator_counter import OperatorNames
from torch._subclasses.fake_tensor import FakeTensorMode

from rlpheads.kernels.pixels.pixel_native import load_native_pixels
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.augment.pipeline import Augment
from rlpheads.loaders.augment.spec import AugmentSpec, EraseSpec, PolicySpec
from rlpheads.loaders.contract.crops import CropSpec, keyed_crops

NORMALIZE = Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
IMAGES = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
INDEX = torch.arange(16)
EVERYTHING = AugmentSpec(
    padding=4, policy=PolicySpec("rand"), color_jitter=(0.3, 0.3, 0.3, 0.0), cutout=8, erase=EraseSpec(0.5)
)


def test_without_augmentations_images_are_only_normalised():
    assert torch.equal(Augment(AugmentSpec(), NORMALIZE, 0)(IMAGES, INDEX, 0), NORMALIZE(IMAGES))


def test_padding_is_black_and_a_covered_square_is_the_mean_colour():
    white = torch.full_like(IMAGES, 255)
    shifted = Augment(AugmentSpec(padding=4), NORMALIZE, 0)(white, INDEX, 0)
    black, bright = NORMALIZE(torch.tensor([[[[0]]], [[[255]]]]).expand(2, 3, 1, 1))
    assert torch.equal(shifted.amin((0, 2, 3)), black.flatten())
    assert torch.equal(shifted.amax((0, 2, 3)), bright.flatten())
    covered = Augment(AugmentSpec(cutout=8), NORMALIZE, 0)(white, INDEX, 0)
    assert (covered == 0).any((1, 2, 3)).all()


def test_one_augmentation_shifts_no_other():
    alone = Augment(AugmentSpec(cutout=8), NORMALIZE, 0)(torch.zeros_like(IMAGES), INDEX, 0)
    both = Augment(AugmentSpec(padding=4, cutout=8), NORMALIZE, 0)(torch.zeros_like(IMAGES), INDEX, 0)
    assert torch.equal(alone, both)


def test_epochs_and_seeds_differ_and_repeat():
    augment = Augment(EVERYTHING, NORMALIZE, 0)
    first = augment(IMAGES, INDEX, 0)
    assert torch.equal(augment(IMAGES, INDEX, 0), first)
    assert not torch.equal(augment(IMAGES, INDEX, 1), first)
    assert not torch.equal(Augment(EVERYTHING, NORMALIZE, 1)(IMAGES, INDEX, 0), first)


def test_a_large_batch_is_cut_into_parts_that_change_nothing():
    augment = Augment(EVERYTHING, NORMALIZE, 0)
    many = IMAGES.repeat(20, 1, 1, 1)
    index = torch.arange(len(many))
    whole = augment(many, index, 1)
    assert torch.equal(whole[200:216], augment(many[200:216], index[200:216], 1))


def test_the_memory_format_stays():
    augment = Augment(EVERYTHING, NORMALIZE, 0)
    plain = augment(IMAGES, INDEX, 0)
    last = augment(IMAGES.contiguous(memory_format=torch.channels_last), INDEX, 0)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


@pytest.mark.long
def test_it_never_waits_for_the_device():
    """Every kind of operation occurs in one batch or another; the indices are known on the host."""
    for policy in ("rand", "three"):
        host_index = np.arange(64)
        with FakeTensorMode(allow_non_fake_inputs=False):
            spec = replace(EVERYTHING, policy=PolicySpec(policy), color_jitter=(0.3, 0.3, 0.3, 0.1))
            augment = Augment(spec, Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), 0)
            images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
            augmented = augment(images, torch.zeros(64, dtype=torch.int64), 3, host_index)
            assert augmented.shape == (64, 3, 32, 32)


def test_indices_that_lie_on_a_device_alone_are_refused():
    augment = Augment(EVERYTHING, NORMALIZE, 0)
    with pytest.raises(ValueError, match="the indices lie on meta; .*give host_index_B"):
        augment(IMAGES, INDEX.to("meta"), 0)


def test_native_code_and_pytorch_make_the_same_images_and_leave_the_bytes():
    native = load_native_pixels()
    assert native is not None
    spec = replace(EVERYTHING, color_jitter=(0.3, 0.3, 0.3, 0.1))
    before = IMAGES.clone()
    theirs, ours = Augment(spec, NORMALIZE, 0)(IMAGES, INDEX, 2), Augment(spec, NORMALIZE, 0, native)(IMAGES, INDEX, 2)
    assert float((theirs - ours).abs().gt(4.5 / (255 * 0.2)).float().mean()) <= 1e-3  # a level, amplified
    assert torch.equal(IMAGES, before)


OPERATORS = {"nearest": 620, "bilinear": 760, "bicubic": 1240}
"""Most operators of RandAugment (timm's m9) and normalisation for 128 images, by warps' interpolation: 2 % above today's."""


@pytest.mark.parametrize("interpolation", OPERATORS)
@pytest.mark.parametrize("in_native_code", [True, False])
def test_the_operators_of_a_batch_do_not_grow(interpolation, in_native_code):
    """On a CPU, where it is one call of C++ beside them, at most 40 are asked for; on a GPU each may be a launch."""
    policy = PolicySpec("rand", magnitude=27, probability=0.5, operations="timm")
    on_cpu = load_native_pixels() if in_native_code else None
    assert (on_cpu is not None) == in_native_code
    augment = Augment(AugmentSpec(policy=policy, interpolation=interpolation), NORMALIZE, 0, on_cpu)
    images = torch.zeros(128, 3, 64, 64, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    with OperatorNames() as operators:
        augment(images, torch.arange(128), 0)
    assert len(operators.names) <= (40 if in_native_code else OPERATORS[interpolation]), Counter(operators.names)


def test_the_whole_image_is_the_largest_central_square():
    sizes = np.array([[32, 32], [20, 31], [41, 10]])
    boxes, _ = keyed_crops(CropSpec(32, kind="whole"), 0, 0, np.arange(3), sizes)
    assert boxes.tolist() == [[0, 0, 32, 32], [0, 5, 20, 20], [15, 0, 10, 10]]


@pytest.mark.parametrize("name", ["padding", "cutout"])
def test_negative_sizes_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is -1"):
        AugmentSpec(**{name: -1})
