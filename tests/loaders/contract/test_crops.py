"""Crops and flips: torchvision's distribution, always inside the image, keyed by the sample."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms.v2 import RandomResizedCrop

from rlpheads.loaders.contract.crops import NUM_CROP_DRAWS, NUM_CROP_TRIES, CropSpec, keyed_crops
from rlpheads.loaders.contract.keyed_random import uniforms

sides = st.integers(1, 700)
few_pixels = st.integers(1, 3)  # of which a crop of a small area has none


def boxes_of(count: int, height: int, width: int, spec: CropSpec) -> np.ndarray:
    return keyed_crops(spec, 1, 0, np.arange(count), np.tile([height, width], (count, 1)))[0]


@given(sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=20), seed=st.integers(0, 1000))
def test_crops_lie_within_the_image(sizes, seed):
    sizes_B2 = np.array(sizes)
    boxes, _ = keyed_crops(CropSpec(16), seed, 0, np.arange(len(sizes)), sizes_B2)
    top, left, height, width = boxes.T
    assert (np.minimum(top, left) >= 0).all()
    assert (np.minimum(height, width) >= 1).all()
    assert (top + height <= sizes_B2[:, 0]).all()
    assert (left + width <= sizes_B2[:, 1]).all()


@pytest.mark.long
@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (224, 224), (100, 260), (64, 8)])
def test_crops_have_the_distribution_of_torchvision(height, width):
    """Two-sample Kolmogorov-Smirnov on area, log ratio and position; the last size falls back to the centre often."""
    torch.manual_seed(0)
    reference = RandomResizedCrop(16, antialias=True)
    image = torch.zeros(1, height, width)
    params = [reference.make_params([image]) for _ in range(4000)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in params], dtype=float)
    ours = boxes_of(40_000, height, width, CropSpec(16)).astype(float)
    for name, measure in MEASURES.items():
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-4, name


MEASURES = {
    "area": lambda boxes: boxes[:, 2] * boxes[:, 3],
    "log ratio": lambda boxes: np.log(boxes[:, 3] / boxes[:, 2]),
    "top": lambda boxes: boxes[:, 0],
    "left": lambda boxes: boxes[:, 1],
}


def test_area_and_ratio_are_drawn_from_the_given_ranges():
    """A large square image never rejects: area and log ratio are uniform, and so is the position in the room left."""
    height = width = 4000
    top, left, crop_height, crop_width = boxes_of(20_000, height, width, CropSpec(16, (0.1, 0.5), (0.8, 1.25))).T
    area = crop_height * crop_width / (height * width)
    log_ratio = np.log(crop_width / crop_height)
    assert stats.kstest(area, "uniform", args=(0.1, 0.4)).pvalue > 1e-3
    assert stats.kstest(log_ratio, "uniform", args=(np.log(0.8), 2 * np.log(1.25))).pvalue > 1e-3
    assert stats.kstest(top / (height - crop_height), "uniform").pvalue > 1e-3
    assert stats.kstest(left / (width - crop_width), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("size", "box"),
    [((300, 30), (130, 0, 40, 30)), ((30, 300), (0, 130, 30, 40)), ((1, 1), (0, 0, 1, 1)), ((1, 900), (0, 449, 1, 1))],
)
def test_extreme_images_fall_back_to_the_central_crop(size, box):
    """No crop of the whole area fits in an image ten times as long as wide: torchvision's fallback, by hand."""
    boxes = boxes_of(10, *size, CropSpec(16, scale=(1.0, 1.0)))
    np.testing.assert_array_equal(boxes, np.tile(box, (10, 1)))


def test_the_whole_image_can_be_asked_for():
    boxes = boxes_of(50, 40, 40, CropSpec(16, scale=(1.0, 1.0), ratio=(1.0, 1.0)))
    np.testing.assert_array_equal(boxes, np.tile([0, 0, 40, 40], (50, 1)))


def test_crops_are_those_of_the_sample_whatever_the_batch():
    index = np.arange(64)
    sizes_B2 = np.random.default_rng(0).integers(20, 500, (64, 2))
    boxes, flipped = keyed_crops(CropSpec(16), 7, 2, index, sizes_B2)
    shuffled = np.random.default_rng(1).permutation(64)
    again, flipped_again = keyed_crops(CropSpec(16), 7, 2, index[shuffled], sizes_B2[shuffled])
    np.testing.assert_array_equal(again, boxes[shuffled])
    np.testing.assert_array_equal(flipped_again, flipped[shuffled])
    for other in ({"seed": 8, "epoch": 2}, {"seed": 7, "epoch": 3}):
        changed, _ = keyed_crops(CropSpec(16), index_B=index, sizes_B2=sizes_B2, **other)
        assert (changed != boxes).any(axis=1).sum() > 50  # very long images fall back to the centre


def plain_crop(draws: np.ndarray, height: int, width: int, spec: CropSpec) -> list[int]:
    """The crop of one image by the loop of torchvision's `get_params`, from the same uniform numbers."""
    logs = [math.log(bound) for bound in spec.ratio]
    for attempt in range(NUM_CROP_TRIES):
        area = height * width * (spec.scale[0] + draws[2 * attempt] * (spec.scale[1] - spec.scale[0]))
        aspect = float(np.exp(logs[0] + draws[2 * attempt + 1] * (logs[1] - logs[0])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(draws[-2] * (height - h + 1)), int(draws[-1] * (width - w + 1)), h, w]
    h = min(max(round(width / spec.ratio[0]), 1), height)
    w = min(max(round(height * spec.ratio[1]), 1), width)
    return [(height - h) // 2, (width - w) // 2, h, w]


@given(
    sizes=st.lists(st.tuples(sides, sides) | st.tuples(few_pixels, few_pixels), min_size=1, max_size=30),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([(0.08, 1.0), (1.0, 1.0), (0.5, 0.6), (0.001, 0.2)]),
    ratio=st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (1 / 3, 0.5), (2.0, 3.0)]),
)
def test_crops_are_those_of_the_plain_loop(sizes, seed, scale, ratio):
    spec, index = CropSpec(16, scale, ratio), np.arange(len(sizes))
    boxes, _ = keyed_crops(spec, seed, 5, index, np.array(sizes))
    draws = uniforms(seed, 5, index, NUM_CROP_DRAWS, stream="crops")
    assert boxes.tolist() == [plain_crop(draws[i], *size, spec) for i, size in enumerate(sizes)]


def test_a_batch_of_no_images_has_no_crops():
    boxes, flipped = keyed_crops(CropSpec(16), 0, 0, np.empty(0, dtype=np.int64), np.empty((0, 2), dtype=np.int64))
    assert boxes.shape == (0, 4)
    assert len(flipped) == 0


def test_flips_have_their_probability():
    index = np.arange(100_000)

    def flips(probability: float, epoch: int = 0) -> np.ndarray:
        spec = CropSpec(16, hflip=probability)
        return keyed_crops(spec, 0, epoch, index, np.full((len(index), 2), 20))[1]

    assert not flips(0.0).any()
    assert flips(1.0).all()
    assert stats.binomtest(int(flips(0.3).sum()), len(index), 0.3).pvalue > 1e-4
    assert (flips(0.5) != flips(0.5, epoch=1)).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 0),
        ("scale", (0.0, 1.0)),
        ("scale", (0.5, 0.2)),
        ("scale", (0.5, 1.5)),
        ("ratio", (0.0, 1.0)),
        ("ratio", (2.0, 1.0)),
        ("ratio", (1.0, float("nan"))),
        ("hflip", 1.5),
        ("crop_fraction", 0.0),
        ("crop_fraction", 1.1),
    ],
)
def test_a_crop_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is"):
        CropSpec(**({"image_size": 16} | {field: value}))


@pytest.mark.parametrize(
    ("size", "fraction", "short"), [(224, 0.875, 256), (224, 0.9, 248), (384, 1.0, 384), (16, 0.875, 18)]
)
def test_the_short_side_is_rounded_down_as_timm_does(size, fraction, short):
    assert CropSpec(size, crop_fraction=fraction).short_side == short
