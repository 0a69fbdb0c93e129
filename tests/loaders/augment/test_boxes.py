"""Shift after padding, cutout and random erasing: known answers, the libraries' distributions, keyed draws."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planned_pixels import run_planner
from scipy import stats
from torchvision.transforms import v2

from rlpheads.loaders.augment.boxes import Cutout, PadCrop, RandomErasing, box_mask
from rlpheads.loaders.augment.spec import EraseSpec
from rlpheads.loaders.contract.keyed_random import uniforms

IMAGES = torch.randint(0, 256, (64, 3, 12, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
INDEX = torch.arange(1000, 1064)


def test_a_shift_is_a_window_of_the_padded_image_at_the_hosts_own_draw():
    shifted = run_planner(PadCrop(4, seed=7), IMAGES, INDEX, 3)
    starts = (uniforms(7, 3, INDEX.numpy(), 2, stream="pad crop") * 9).astype(int)
    padded = F.pad(IMAGES, [4] * 4)
    for image, window, (top, left) in zip(padded, shifted, starts, strict=True):
        assert torch.equal(window, image[:, top : top + 12, left : left + 16])
    assert shifted.dtype == torch.uint8
    assert set(starts.ravel()) == set(range(9))


def test_cutout_covers_a_square_about_any_pixel():
    ones = torch.ones(20_000, 3, 8, 8)
    index = torch.arange(20_000)
    kept = Cutout(4, seed=1)(ones, index, 0)
    centres = (uniforms(1, 0, index.numpy(), 2, stream="cutout") * 8).astype(int)
    for row in range(200):
        top, left = centres[row] - 2
        expected = ones[row].clone()
        expected[:, max(top, 0) : top + 4, max(left, 0) : left + 4] = 0
        assert torch.equal(kept[row], expected)
    # Every centre equally likely: the mean covered area is that of 64 positions, cut off at the edges.
    inside = np.array([min(c + 2, 8) - max(c - 2, 0) for c in range(8)]).mean()
    assert 1 - float(kept[:, 0].mean()) == pytest.approx(inside**2 / 64, abs=0.003)


def erased_boxes(spec: EraseSpec, count: int, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return areas and ratios of the erased boxes."""
    erased = RandomErasing(spec, seed=3)(torch.ones(count, 3, side, side), torch.arange(count), 0)
    covered = (erased[:, 0] == 0).numpy()
    heights, widths = covered.any(2).sum(1), covered.any(1).sum(1)
    chosen = heights > 0
    assert (heights * widths == covered.sum((1, 2))).all()  # a box, whole
    return (heights * widths)[chosen] / side**2, heights[chosen] / widths[chosen]


@pytest.mark.long
def test_random_erasing_has_the_distribution_of_torchvision():
    areas, ratios = erased_boxes(EraseSpec(0.5, fill="mean"), 20_000)
    assert len(areas) == pytest.approx(10_000, abs=5 * 71)
    theirs = v2.RandomErasing(p=1.0, scale=(0.02, 1 / 3), ratio=(0.3, 10 / 3))
    torch.manual_seed(0)
    drawn = [theirs.make_params([torch.ones(3, 32, 32)]) for _ in range(10_000)]
    expected = np.array([(each["h"] * each["w"] / 1024, each["h"] / each["w"]) for each in drawn])
    assert stats.ks_2samp(areas, expected[:, 0]).pvalue > 1e-3
    assert stats.ks_2samp(ratios, expected[:, 1]).pvalue > 1e-3


def test_erasing_leaves_images_unchanged_where_no_box_fits():
    spec = EraseSpec(1.0, area=(0.9, 1.0), ratio=(9.0, 10.0), fill="mean")
    ones = torch.ones(50, 3, 8, 8)
    assert torch.equal(RandomErasing(spec, 0)(ones, torch.arange(50), 0), ones)


def test_noise_is_normal_in_the_box_alone_and_a_colour_is_one_colour():
    base = torch.full((400, 3, 16, 16), 9.0)
    index = torch.arange(400)
    noisy = RandomErasing(EraseSpec(1.0, fill="noise"), 0)(base, index, 0)
    coloured = RandomErasing(EraseSpec(1.0, fill="color"), 0)(base, index, 0)
    covered = noisy != 9
    assert torch.equal(covered, coloured != 9)
    assert stats.kstest(noisy[covered].numpy(), "norm").pvalue > 1e-3
    for image, inside in zip(coloured, covered, strict=True):
        for channel in range(3):
            assert len(image[channel][inside[channel]].unique()) <= 1


@pytest.mark.parametrize("operation", [PadCrop(4, 0), Cutout(5, 0), RandomErasing(EraseSpec(0.7), 0)])
def test_a_draw_belongs_to_its_sample(operation):
    if isinstance(operation, PadCrop):
        operation, images = partial(run_planner, operation), IMAGES
    else:
        images = IMAGES.float()
    whole = operation(images, INDEX, 5)
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(operation(images[shuffled], INDEX[shuffled], 5), whole[shuffled])
    assert torch.equal(operation(images[:7], INDEX[:7], 5), whole[:7])
    assert not torch.equal(operation(images, INDEX, 6), whole)
    assert not torch.equal(operation(images, INDEX + 1, 5), whole)


def test_a_mask_hangs_over_every_edge():
    mask = box_mask(torch.tensor([[-1, 2], [3, -9]]), torch.tensor([[3, 9], [2, 2]]), torch.Size((4, 5)))
    assert mask[0, 0].nonzero().tolist() == [[r, c] for r in (0, 1) for c in (2, 3, 4)]
    assert not mask[1].any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"probability": 1.1}, "a probability is in"),
        ({"area": (0.5, 0.1)}, "least <= most"),
        ({"ratio": (0.0, 1.0)}, "0 < least"),
        ({"fill": "nois"}, "one of noise, color, mean"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        EraseSpec(**wrong)
