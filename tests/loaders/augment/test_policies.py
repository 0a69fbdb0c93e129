"""Policies: each operation as torchvision's policy does it, torchvision's frequencies, and draws that belong to samples."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from augment_images import photographs
from planned_pixels import apply_operation, run_planner
from scipy import stats
from timm.data import auto_augment
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from rlpheads.kernels.pixels.pixel_native import load_native_pixels
from rlpheads.loaders.augment import policies as policies
from rlpheads.loaders.augment.operations import NUMBER, OPERATIONS, PAPER_SPACE, TIMM_SPACE, WIDE_SPACE
from rlpheads.loaders.augment.pixel_plan import PixelPlanner, run_sorted
from rlpheads.loaders.augment.spec import POLICIES, AugmentSpec, PolicySpec
from rlpheads.loaders.augment.tables import AUTO_POLICIES
from rlpheads.loaders.contract.keyed_random import uniforms

IMAGES = photographs(40, 48)
INDEX = torch.arange(12)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "SolarizeAdd"])
@pytest.mark.parametrize(
    ("space", "theirs"),
    [(PAPER_SPACE, v2.RandAugment()), (WIDE_SPACE, v2.TrivialAugmentWide())],
    ids=["paper", "wide"],
)
def test_an_operation_is_that_of_torchvisions_policy(name, space, theirs):
    """At most one pixel in a thousand may differ (see test_pixel_operations).

    torchvision's magnitudes come in float32 (half of 32 pixels is 15.999999, hence a shift by 15): they are rounded here.
    At 20 a shear is 0.2, which puts whole lines half-way between two pixels; 19 stands for it.
    """
    magnitudes_of, signed = theirs._AUGMENTATION_SPACE.get(name, (lambda *_: None, False))
    magnitudes = magnitudes_of(31, 40, 48)
    number = torch.full((len(IMAGES),), NUMBER[name])
    for bin_, sign in itertools.product((0, 1, 9, 15, 19, 30), (1, -1)):
        strength = torch.full((len(IMAGES),), sign * bin_ / 30, dtype=torch.float64)
        magnitude = 0.0 if magnitudes is None else round(float(magnitudes[bin_]), 5) * (sign if signed else 1)
        expected = theirs._apply_image_or_video_transform(
            IMAGES, name, magnitude, v2.InterpolationMode.NEAREST, {torch.Tensor: None}
        )
        ours = apply_operation(IMAGES, number, strength, space)
        assert float((ours != expected).any(1).float().mean()) <= 1e-3, (bin_, sign)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        *(("Invert", 0), ("SolarizeAdd", 0), ("SolarizeIncreasing", 0), ("PosterizeIncreasing", 0), ("Equalize", 0)),
        *(("AutoContrast", 1), ("ColorIncreasing", 1), ("ContrastIncreasing", 1), ("BrightnessIncreasing", 1)),
        ("SharpnessIncreasing", 1),
    ],
)
def test_an_operation_on_colours_is_timms(monkeypatch, name, levels):
    """To so many grey levels; Pillow rounds where torchvision, which these are, cuts off."""
    number = torch.full((len(IMAGES),), NUMBER[name.removesuffix("Increasing")])
    for tenths, sign in itertools.product((0, 1, 5, 7.5, 9, 10), (1, -1)):
        monkeypatch.setattr(random, "random", lambda sign=sign: 0.4 * (1 - sign))  # above one half: timm negates
        level_of = auto_augment.LEVEL_TO_ARG[name]
        arguments = level_of(tenths, {}) if level_of else ()
        if name == "PosterizeIncreasing" and tenths == 10:
            assert arguments == (0,)  # which Pillow refuses: a black image
            arguments = (1,)
        ours = apply_operation(IMAGES, number, torch.full((len(IMAGES),), sign * tenths / 10), TIMM_SPACE)
        for image, result in zip(IMAGES, ours, strict=True):
            theirs = auto_augment.NAME_TO_OP[name](F.to_pil_image(image), *arguments)
            assert int((F.pil_to_tensor(theirs).int() - result.int()).abs().max()) <= levels, (tenths, sign)


def test_rand_augment_with_timms_operations_takes_each_of_the_15_as_often():
    policy = policies.RandAugment(PolicySpec("rand", magnitude=27, operations="timm"), 0)
    drawn = policy.draw(np.arange(20_000), 0)
    for number, _ in drawn:
        assert_uniform(number - 1, 15)
    assert policy.space is TIMM_SPACE
    chosen = {OPERATIONS[number] for number in drawn[0].number_B.tolist()}
    timms = {name.removesuffix("Increasing").removesuffix("Rel") for name in auto_augment._RAND_INCREASING_TRANSFORMS}
    assert chosen == timms


def test_images_of_one_batch_get_operations_of_their_own():
    number = torch.arange(12) + 4
    strength = torch.linspace(-1, 1, 12)
    for space in (PAPER_SPACE, TIMM_SPACE):
        together = apply_operation(IMAGES, number, strength, space)
        for row in range(12):
            alone = apply_operation(IMAGES[row : row + 1], number[row : row + 1], strength[row : row + 1], space)
            assert torch.equal(alone[0], together[row])


def assert_uniform(values: np.ndarray, num_values: int) -> None:
    counts = np.bincount(values, minlength=num_values)
    assert len(counts) == num_values
    assert stats.chisquare(counts).pvalue > 1e-3


def test_rand_augment_takes_each_operation_as_often_at_its_magnitude_in_both_directions():
    steps = policies.RandAugment(PolicySpec("rand", ops=3, magnitude=9), 0).draw(np.arange(20_000), 0)
    assert len(steps) == 3
    for number, strength in steps:
        assert_uniform(number, 14)  # all but Invert and SolarizeAdd
        np.testing.assert_allclose(np.abs(strength), 0.3, rtol=1e-6)
        assert (strength > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert np.corrcoef(steps[0][0], steps[1][0])[0, 1] == pytest.approx(0, abs=0.03)


def test_rand_augment_as_timm_writes_it():
    """rand-m9-mstd0.5-n2 is magnitude 27 of 30 with a deviation of 1.5, each operation at probability one half."""
    spec = PolicySpec("rand", ops=2, magnitude=27, magnitude_std=1.5, probability=0.5)
    (number, strength), _ = policies.RandAugment(spec, 0).draw(np.arange(20_000), 0)
    assert (number == 0).mean() == pytest.approx(0.5 + 0.5 / 14, abs=0.02)
    assert np.abs(strength).mean() == pytest.approx(0.9, abs=0.005)
    assert np.abs(strength).std() == pytest.approx(0.05, abs=0.005)
    assert np.abs(strength).max() <= 1


def test_trivial_augment_takes_any_operation_at_any_of_31_strengths():
    ((number, strength),) = policies.TrivialAugment(0).draw(np.arange(20_000), 0)
    assert_uniform(number, 14)
    assert_uniform(np.rint(np.abs(strength) * 30).astype(int), 31)


@pytest.mark.parametrize("name", ["imagenet", "cifar10"])
def test_auto_augments_table_is_torchvisions(name):
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy(name))._policies
    assert [[(step[0], step[1], step[2] or 0) for step in pair] for pair in theirs] == [
        list(pair) for pair in AUTO_POLICIES[name]
    ]


def test_auto_augment_takes_its_pairs_with_their_probabilities():
    (first, first_strength), (second, _) = policies.AutoAugment("cifar10", 0).draw(np.arange(50_000), 0)
    row = (uniforms(0, 0, np.arange(50_000), 1, stream="auto augment")[:, 0] * 25).astype(int)
    assert_uniform(row, 25)
    for number, ((name, probability, magnitude), _) in enumerate(AUTO_POLICIES["cifar10"]):
        mine = row == number
        applied = first[mine] == NUMBER[name]
        assert applied.mean() == pytest.approx(probability, abs=0.05)
        assert np.allclose(np.abs(first_strength[mine]), magnitude / 9)
    assert set(second) <= set(range(15))


def test_three_augment_is_grey_or_solarised_or_blurred():
    images = IMAGES[:9].repeat(40, 1, 1, 1)
    index = torch.arange(len(images))
    ours = run_planner(policies.ThreeAugment(5), images, index, 1)
    draws = uniforms(5, 1, index.numpy(), 2, stream="three augment")
    kinds = (draws[:, 0] * 3).astype(int)
    for image, result, kind, width in zip(images, ours, kinds, draws[:, 1], strict=True):
        if kind == 0:
            expected = F.rgb_to_grayscale(image, 3)
        elif kind == 1:
            expected = F.solarize(image, 128)
        else:
            expected = F.gaussian_blur(image, [13, 13], [0.1 + 1.9 * width] * 2)
        assert int((result.int() - expected.int()).abs().max()) <= 1
    assert_uniform(kinds, 3)


def test_jitter_is_torchvisions_functions_in_each_images_own_order():
    jitter = policies.ColorJitter((0.4, 0.3, 1.5, 0.1), 3)
    images = IMAGES[:9].repeat(20, 1, 1, 1)
    index = torch.arange(len(images))
    ours = run_planner(jitter, images, index, 2)
    draws = uniforms(3, 2, index.numpy(), 5, stream="color jitter")
    functions = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    spans = ((0.6, 1.4), (0.7, 1.3), (0.0, 2.5))
    for image, result, draw in zip(images, ours, draws, strict=True):
        for kind in jitter.ORDERS[int(draw[0] * 6)]:
            least, most = spans[kind]
            image = functions[kind](image, float(least + draw[1 + kind] * (most - least)))
        expected = F.adjust_hue(image, float((2 * draw[4] - 1) * 0.1))
        difference = (result.int() - expected.int()).abs()
        assert float((difference > 2).float().mean()) <= 1e-3  # a level more or less is amplified by the next function
    assert_uniform((draws[:, 0] * 6).astype(int), 6)


def planners() -> list[PixelPlanner]:
    made = [policies.make_policy(PolicySpec(name), 0) for name in POLICIES if name != "none"]
    made.append(policies.make_policy(PolicySpec("rand", operations="timm"), 0))
    return [*made, policies.ColorJitter((0.4, 0.4, 0.4, 0.1), 0)]


@pytest.mark.parametrize("planner", planners(), ids=lambda planner: type(getattr(planner, "policy", planner)).__name__)
def test_a_draw_belongs_to_its_sample(planner):
    index = INDEX + 100
    whole = run_planner(planner, IMAGES, index, 5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert whole.dtype == torch.uint8
    assert torch.equal(run_planner(planner, IMAGES[order], index[order], 5), whole[order])
    assert torch.equal(run_planner(planner, IMAGES[:5], index[:5], 5), whole[:5])
    assert not torch.equal(run_planner(planner, IMAGES, index, 6), whole)
    assert not torch.equal(run_planner(planner, IMAGES, index + 50, 5), whole)


@pytest.mark.parametrize("run", [run_sorted, load_native_pixels()], ids=["torch", "native"])
@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("rand", PolicySpec("rand", ops=3)),
        ("rand_timm", PolicySpec("rand", magnitude=27, magnitude_std=1.5, probability=0.5, operations="timm")),
        *((name, PolicySpec(name)) for name in ("trivial", "auto_imagenet", "auto_cifar10")),
    ],
)
def test_pixels_are_those_of_the_form_that_passed_every_image_through_every_operation(name, spec, run):
    """To a level, but for a pixel in a thousand, which a warp may take from a neighbour: runs go on as they began."""
    images = photographs(20, 24).repeat(2, 1, 1, 1)
    ours = run_planner(policies.make_policy(spec, 11), images, torch.arange(24) * 7 + 3, 4, run).numpy().astype(int)
    with np.load(Path(__file__).with_name("policy_pixels.npz")) as before:
        assert float((np.abs(ours - before[name]) > 1).any(1).mean()) <= 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "randaugment"}, "policy is 'randaugment'; it must be one of none, rand"),
        ({"probability": 1.5}, "a probability is in"),
        ({"magnitude": 31}, "magnitude in"),
        ({"operations": "timn"}, "policy operations is 'timn'; it must be one of torchvision, timm"),
        ({"ops": 0}, "ops is at least 1"),
        ({"magnitude_std": float("nan")}, "magnitude_std at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PolicySpec(**wrong)


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="interpolation is 'cubic'; it must be one of nearest, bilinear, bicubic"):
        AugmentSpec(interpolation="cubic")


@pytest.mark.parametrize("ranges", [(-0.1, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.6)])
def test_a_jitter_out_of_range_is_refused(ranges):
    with pytest.raises(ValueError, match="each is at least 0, and the last at most 0.5"):
        AugmentSpec(color_jitter=ranges)
