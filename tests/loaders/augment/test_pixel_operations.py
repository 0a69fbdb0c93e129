"""Batched operations with a strength for each image, against torchvision's functions, image by image.

Stated tolerance: where arithmetic is whole numbers the bytes are equal; where it is floating-point, at most one pixel in a
thousand differs, and by one level (a product is rounded before or after a sum); warps, at most one pixel in a thousand
comes from a neighbour (a coordinate that lies half-way).
"""

import math

import numpy as np
import pytest
import torch
from augment_images import photographs
from PIL import Image
from torchvision.transforms.v2 import functional as F

from rlpheads.loaders.augment import pixel_operations as pixels
from rlpheads.loaders.augment.operations import affine_matrices

SIZES = [(40, 40), (31, 47)]


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert torch.equal(ours, theirs)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Differences of one level, in one pixel of a thousand at most."""
    assert ours.dtype == torch.uint8
    difference = (ours.int() - theirs.int()).abs()
    assert int(difference.max()) <= 1
    assert float((difference > 0).float().mean()) <= 1e-3


def assert_moved_alike(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert float((ours != theirs).any(1).float().mean()) <= 1e-3


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def images(request) -> torch.Tensor:
    return photographs(*request.param)


def strengths(low: float, high: float, count: int = 12) -> torch.Tensor:
    return torch.linspace(low, high, count, dtype=torch.float64)


def each(images: torch.Tensor, function, values: torch.Tensor) -> torch.Tensor:
    return torch.stack([function(image, value) for image, value in zip(images, values.tolist(), strict=True)])


def test_brightness(images):
    ratios = strengths(0.0, 2.0)
    assert_close(pixels.blend(images, torch.zeros(()), ratios, 1 - ratios), each(images, F.adjust_brightness, ratios))


def test_saturation(images):
    ratios = strengths(0.0, 2.0)
    assert_close(
        pixels.blend(images, pixels.grey(images), ratios, 1 - ratios), each(images, F.adjust_saturation, ratios)
    )


def test_contrast(images):
    ratios = strengths(0.0, 2.0)
    mean = pixels.mean_of(pixels.grey(images))
    assert_close(pixels.blend(images, mean, ratios, 1 - ratios), each(images, F.adjust_contrast, ratios))


def test_sharpness(images):
    ratios = strengths(0.0, 3.0)
    assert_close(pixels.sharpen(images, 1 - ratios), each(images, F.adjust_sharpness, ratios))
    tiny = images[..., :2, :2]
    assert_same(pixels.sharpen(tiny, 1 - ratios), tiny)


def test_posterize(images):
    bits = torch.arange(12) % 9
    assert_same(pixels.posterize(images, bits), each(images, F.posterize, bits))


def test_solarize_and_invert(images):
    thresholds = torch.tensor([0.0, 0.5, 1.0, 17.0, 99.5, 128.0, 178.5, 200.0, 254.0, 254.5, 255.0, 3.0])
    assert_same(pixels.solarize(images, thresholds), each(images, F.solarize, thresholds))
    assert_same(pixels.solarize(images, torch.zeros(12)), F.invert(images))
    assert_same(pixels.solarize(images, torch.full((12,), 256.0)), images)


def test_autocontrast_and_equalize(images):
    assert_same(pixels.autocontrast(images), F.autocontrast(images))
    assert_same(pixels.equalize(images), F.equalize(images))


def test_hue(images):
    turns = strengths(-0.5, 0.5)
    assert_close(pixels.rotate_hue(images, turns), each(images, F.adjust_hue, turns))
    assert_same(pixels.rotate_hue(images, torch.zeros(12)), images)


def test_blur(images):
    sigmas = strengths(0.1, 2.0)
    theirs = each(images, lambda image, sigma: F.gaussian_blur(image, [13, 13], [sigma, sigma]), sigmas)
    assert_close(pixels.gaussian_blur(images, sigmas), theirs)


def maps(size: torch.Size, *, across=0.0, down=0.0, right=0.0, below=0.0, degrees=0.0) -> torch.Tensor:
    """Return the maps of 12 images, by numbers or by one for each."""
    given = (np.broadcast_to(np.asarray(values, dtype=float), 12) for values in (across, down, right, below, degrees))
    across_B, down_B, right_B, below_B, degrees_B = given
    matrices = affine_matrices((across_B, down_B), (right_B, below_B), degrees_B, tuple(size))
    return torch.from_numpy(matrices).view(12, 2, 3)


def test_shears(images):
    tangents = strengths(-0.99, 0.99)
    for axis, name in enumerate(("across", "down")):
        ours = pixels.warp(images, maps(images.shape[-2:], **{name: tangents}))

        def theirs(image, tangent, axis=axis):
            angles = [0.0, 0.0]
            angles[axis] = math.degrees(math.atan(tangent))
            return F.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=angles, center=[0, 0])

        assert_moved_alike(ours, each(images, theirs, tangents))


def test_translations(images):
    shifts = torch.tensor([[x, 7 - 2 * x] for x in range(-5, 7)])
    matrices = maps(images.shape[-2:], right=shifts[:, 0], below=shifts[:, 1])
    theirs = [
        F.affine(image, angle=0.0, translate=shift, scale=1.0, shear=[0.0, 0.0])
        for image, shift in zip(images, shifts.tolist(), strict=True)
    ]
    for interpolation in ("nearest", "bilinear", "bicubic"):
        assert_same(pixels.warp(images, matrices, interpolation), torch.stack(theirs))


def test_rotations(images):
    degrees = strengths(-135.0, 135.0)
    matrices = maps(images.shape[-2:], degrees=degrees)
    assert_moved_alike(pixels.warp(images, matrices), each(images, F.rotate, degrees))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_between_pixels_it_is_pillows(images, interpolation):
    """As timm's operations ask for it: coordinates from the top left corner of the first pixel, in one place of `a` to `f`."""
    height, width = images.shape[-2:]
    degrees = strengths(-60.0, 60.0)
    matrices = maps(images.shape[-2:], degrees=degrees)
    ours = pixels.warp(images, matrices, interpolation)
    for image, result, matrix in zip(images, ours, matrices.tolist(), strict=True):
        (a, b, c), (d, e, f) = matrix
        corner = (
            a,
            b,
            c + width / 2 - a * width / 2 - b * height / 2,
            d,
            e,
            f + height / 2 - d * width / 2 - e * height / 2,
        )
        resample = Image.Resampling[interpolation.upper()]
        pillow = F.to_pil_image(image).transform((width, height), Image.Transform.AFFINE, corner, resample=resample)
        difference = (result.int() - F.pil_to_tensor(pillow).int()).abs()
        assert float((difference > 1).float().mean()) <= 1e-3


def test_operations_are_neutral_at_their_neutral_strength(images):
    ones = torch.ones(12)
    assert_same(pixels.warp(images, maps(images.shape[-2:])), images)
    assert_same(pixels.blend(images, torch.full((), 99.0), ones, 0 * ones), images)
    assert_same(pixels.sharpen(images, 0 * ones), images)
    assert_same(pixels.posterize(images, 8 * ones), images)
