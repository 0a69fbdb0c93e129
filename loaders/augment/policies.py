"""Policies that choose operations for each image: RandAugment, TrivialAugment, AutoAugment and three-augment.

Each image of a batch gets its own operations at its own strength, keyed by (seed, epoch, index). The spaces of operations
and strengths are those of torchvision's classes of these names, or for RandAugment timm's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rlpheads.loaders.augment import pixel_operations as pixels
from rlpheads.loaders.augment.spec import PolicySpec
from rlpheads.loaders.augment.tables import AUTO_POLICIES
from rlpheads.loaders.contract.keyed_random import KeyedStream

OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert", "SolarizeAdd"),
)
NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
_RANDOM = NUMBER["Equalize"] + 1
"""The first so many operations are those of torchvision's RandAugment and TrivialAugment."""

MAX_MAGNITUDE = 30
"""The strongest magnitude of RandAugment, as in its paper and in torchvision."""


@dataclass(frozen=True)
class Space:
    """How strong the operations are at full strength.

    Attributes:
        shear: tangent of the angle.
        translate: pixels, and fraction of the image's side, which are added.
        rotate: degrees.
        enhance: what is added to or taken from the ratio 1 of brightness, colour, contrast and sharpness.
        posterize: bits that are kept at no strength, and how many fewer at full strength.
        round_bits_up: whether the number of kept bits is rounded up, instead of to the nearest.
        solarize: least byte that is not inverted at no strength.
        solarize_add: what is added to bytes below 128.
    """

    shear: float
    translate: tuple[float, float]
    rotate: float
    enhance: float
    posterize: tuple[int, int]
    round_bits_up: bool = False
    solarize: int = 255
    solarize_add: int = 0


PAPER_SPACE = Space(shear=0.3, translate=(0.0, 150 / 331), rotate=30.0, enhance=0.9, posterize=(8, 4))
WIDE_SPACE = Space(shear=0.99, translate=(32.0, 0.0), rotate=135.0, enhance=0.99, posterize=(8, 6))
TIMM_SPACE = replace(
    PAPER_SPACE, translate=(0.0, 0.45), posterize=(4, 4), round_bits_up=True, solarize=256, solarize_add=110
)
_RAND_SETS = {"torchvision": (range(_RANDOM), PAPER_SPACE), "timm": (range(1, len(OPERATIONS)), TIMM_SPACE)}
"""Numbers of the operations that RandAugment chooses from, and how strong they are."""


def apply_operation(images_B3HW: Tensor, number_B: Tensor, strength_B: Tensor, space: Space) -> Tensor:
    """Apply one operation to each image.

    Args:
        images_B3HW: uint8.
        number_B: int64, position in OPERATIONS.
        strength_B: from −1 to 1; the sign counts where an operation has two directions.
        space: what strength 1 means.

    Returns:
        uint8 (B, 3, H, W).
    """
    size = (images_B3HW.shape[-2], images_B3HW.shape[-1])
    unsigned_B = strength_B.abs()

    def chosen(name: str) -> Tensor:
        return number_B == NUMBER[name]

    def among(values_B: Tensor, *names: str) -> Tensor:
        """Return the values where one of the operations is chosen, and 0 elsewhere."""
        is_one_B = torch.stack([chosen(name) for name in names]).any(0)
        return torch.where(is_one_B, values_B, 0.0)

    pixels_plus, fraction = space.translate
    shear_B2 = torch.stack([among(strength_B, name) for name in ("ShearX", "ShearY")], dim=1) * space.shear
    shift_B2 = torch.stack(
        [
            among(torch.trunc(strength_B * (pixels_plus + fraction * side)), name)
            for name, side in (("TranslateX", size[1]), ("TranslateY", size[0]))
        ],
        dim=1,
    )
    degrees_B = among(strength_B * space.rotate, "Rotate")
    images = pixels.warp(images_B3HW, pixels.affine_matrices(shear_B2, shift_B2, degrees_B, size))
    grey = pixels.grey(images)
    other = grey_or_mean(grey, chosen("Color"), chosen("Contrast"))
    images = pixels.blend(images, other, 1 + among(strength_B * space.enhance, "Brightness", "Color", "Contrast"))
    images = pixels.sharpen(images, 1 + among(strength_B * space.enhance, "Sharpness"))
    images = pixels.posterize(images, torch.where(chosen("Posterize"), kept_bits(unsigned_B, space), 8.0))
    # A little less than the product: 255 × 14/15 is 238, and no device may round it to just above.
    threshold_B = torch.where(chosen("Solarize"), space.solarize * (1 - unsigned_B) - 1e-3, 256.0)
    images = pixels.solarize(images, torch.where(chosen("Invert"), 0.0, threshold_B))
    if space.solarize_add:
        images = pixels.solarize_add(images, among(unsigned_B * space.solarize_add, "SolarizeAdd"))
    images = pixels.autocontrast(images, chosen("AutoContrast"))
    return pixels.equalize(images, chosen("Equalize"))


def kept_bits(unsigned_B: Tensor, space: Space) -> Tensor:
    """Return how many bits "Posterize" keeps at strengths from 0 to 1: whole numbers (B,), at least 1."""
    bits_B = space.posterize[0] - space.posterize[1] * unsigned_B
    # A little less than the product, as above: 4 × 3/4 is 3, and no device may make a fourth bit of it.
    return (torch.ceil(bits_B - 1e-3) if space.round_bits_up else torch.round(bits_B)).clamp(min=1)


def grey_or_mean(grey_B1HW: Tensor, grey_B: Tensor, mean_B: Tensor) -> Tensor:
    """Return what images are blended with: themselves in grey where `grey_B`, its mean where `mean_B`, else black."""
    mean_B111 = pixels.mean_of(grey_B1HW) * _per_row(mean_B)
    return torch.addcmul(mean_B111, grey_B1HW.to(torch.float32), _per_row(grey_B).to(torch.float32))


class RandAugment(nn.Module):
    """Some operations in a row, all as strong (Cubuk et al., 2019, arXiv:1909.13719).

    Args:
        spec: how many, how strong, how likely, and whose.
        seed: key of the run.
    """

    numbers_S: Tensor

    def __init__(self, spec: PolicySpec, seed: int) -> None:
        super().__init__()
        self.spec = spec
        numbers, self.space = _RAND_SETS[spec.operations]
        self.register_buffer("numbers_S", torch.tensor(list(numbers)), persistent=False)
        self.stream = KeyedStream(seed, "rand augment")
        self.noise = KeyedStream(seed, "rand augment magnitude")

    def forward(self, images_B3HW: Tensor, index_B: Tensor, epoch: int) -> Tensor:
        """Augment uint8 (B, 3, H, W) images."""
        num_ops = self.spec.ops
        draws_BO3 = self.stream.uniforms(epoch, index_B, num_draws=3 * num_ops).unflatten(1, (num_ops, 3))
        noise_BO = self.noise.normals(epoch, index_B, num_draws=num_ops)
        magnitude_BO = (self.spec.magnitude + self.spec.magnitude_std * noise_BO).clamp(0, MAX_MAGNITUDE)
        for step in range(num_ops):
            applied, choice, sign = draws_BO3[:, step].unbind(1)
            chosen_B = self.numbers_S[(choice * len(self.numbers_S)).to(torch.int64)]
            number_B = torch.where(applied < self.spec.probability, chosen_B, 0)
            strength_B = _apply_sign(magnitude_BO[:, step] / MAX_MAGNITUDE, sign)
            images_B3HW = apply_operation(images_B3HW, number_B, strength_B, self.space)
        return images_B3HW


class TrivialAugment(nn.Module):
    """One operation at any strength, in the wide space (Müller & Hutter, 2021, arXiv:2103.10158).

    Args:
        seed: key of the run.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.stream = KeyedStream(seed, "trivial augment")

    def forward(self, images_B3HW: Tensor, index_B: Tensor, epoch: int) -> Tensor:
        """Augment uint8 (B, 3, H, W) images."""
        choice, magnitude, sign = self.stream.uniforms(epoch, index_B, num_draws=3).unbind(1)
        number_B = (choice * _RANDOM).to(torch.int64)
        strength_B = _apply_sign(torch.floor(magnitude * (MAX_MAGNITUDE + 1)) / MAX_MAGNITUDE, sign)
        return apply_operation(images_B3HW, number_B, strength_B, WIDE_SPACE)


class AutoAugment(nn.Module):
    """One of 25 learned pairs of operations (Cubuk et al., 2018, arXiv:1805.09501).

    Args:
        policy: "imagenet" or "cifar10", the data that it was learned on.
        seed: key of the run.
    """

    number_P2: Tensor
    probability_P2: Tensor
    strength_P2: Tensor

    def __init__(self, policy: str, seed: int) -> None:
        super().__init__()
        self.stream = KeyedStream(seed, "auto augment")
        rows = AUTO_POLICIES[policy]
        columns = {
            "number_P2": [[NUMBER[name] for name, _, _ in pair] for pair in rows],
            "probability_P2": [[probability for _, probability, _ in pair] for pair in rows],
            "strength_P2": [[magnitude / 9 for _, _, magnitude in pair] for pair in rows],
        }
        for name, column in columns.items():
            self.register_buffer(name, torch.tensor(column), persistent=False)

    def forward(self, images_B3HW: Tensor, index_B: Tensor, epoch: int) -> Tensor:
        """Augment uint8 (B, 3, H, W) images."""
        draws_BU = self.stream.uniforms(epoch, index_B, num_draws=5)
        row_B = (draws_BU[:, 0] * len(self.number_P2)).to(torch.int64)
        for step in range(2):
            applied, sign = draws_BU[:, 1 + 2 * step : 3 + 2 * step].unbind(1)
            number_B = torch.where(applied < self.probability_P2[row_B, step], self.number_P2[row_B, step], 0)
            images_B3HW = apply_operation(
                images_B3HW, number_B, _apply_sign(self.strength_P2[row_B, step], sign), PAPER_SPACE
            )
        return images_B3HW


class ThreeAugment(nn.Module):
    """Grey, or solarised at one half, or blurred, each as likely (Touvron et al., 2022, arXiv:2204.07118).

    The blur's standard deviation is uniform from 0.1 to 2 pixels.

    Args:
        seed: key of the run.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.stream = KeyedStream(seed, "three augment")

    def forward(self, images_B3HW: Tensor, index_B: Tensor, epoch: int) -> Tensor:
        """Augment uint8 (B, 3, H, W) images."""
        choice, width = self.stream.uniforms(epoch, index_B, num_draws=2).unbind(1)
        number_B = (choice * 3).to(torch.int64)
        solarized = pixels.solarize(images_B3HW, torch.where(number_B == 1, 128.0, 256.0))
        greyed = pixels.choose(_per_row(number_B == 0), pixels.grey(images_B3HW), solarized)
        blurred = pixels.gaussian_blur(images_B3HW, 0.1 + (pixels.MAX_BLUR - 0.1) * width)
        return pixels.choose(_per_row(number_B == 2), blurred, greyed)


class ColorJitter(nn.Module):
    """Change brightness, contrast and saturation in an order of each image's own, then the hue.

    A ratio is uniform from 1 − x to 1 + x (from 0, where x is above 1). torchvision's class differs in one thing: it puts
    the hue anywhere among the others, which would cost three more conversions of every pixel here.

    Args:
        ranges: x for brightness, contrast and saturation, and the largest turn of the hue, from 0 to 0.5.
        seed: key of the run.
    """

    ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    orders_63: Tensor

    def __init__(self, ranges: tuple[float, float, float, float], seed: int) -> None:
        super().__init__()
        self.ranges = ranges
        self.stream = KeyedStream(seed, "color jitter")
        self.register_buffer("orders_63", torch.tensor(self.ORDERS), persistent=False)

    def forward(self, images_B3HW: Tensor, index_B: Tensor, epoch: int) -> Tensor:
        """Jitter uint8 (B, 3, H, W) images."""
        draws_B5 = self.stream.uniforms(epoch, index_B, num_draws=5)
        order_B3 = self.orders_63[(draws_B5[:, 0] * len(self.ORDERS)).to(torch.int64)]
        spans = [(max(0.0, 1 - x), 1 + x) for x in self.ranges[:3]]
        ratio_B3 = torch.stack(
            [least + draws_B5[:, 1 + kind] * (most - least) for kind, (least, most) in enumerate(spans)], dim=1
        )
        for kind_B in order_B3.unbind(1) if any(self.ranges[:3]) else ():
            grey = pixels.grey(images_B3HW)
            ratio_B = ratio_B3.gather(1, kind_B[:, None]).squeeze(1)
            images_B3HW = pixels.blend(images_B3HW, grey_or_mean(grey, kind_B == 2, kind_B == 1), ratio_B)
        if self.ranges[3]:
            images_B3HW = pixels.rotate_hue(images_B3HW, (2 * draws_B5[:, 4] - 1) * self.ranges[3])
        return images_B3HW


def make_policy(spec: PolicySpec, seed: int) -> nn.Module:
    """Return the module of a policy that is not "none"."""
    if spec.name == "rand":
        return RandAugment(spec, seed)
    if spec.name == "trivial":
        return TrivialAugment(seed)
    if spec.name == "three":
        return ThreeAugment(seed)
    return AutoAugment(spec.name.removeprefix("auto_"), seed)


def _apply_sign(strength_B: Tensor, sign_B: Tensor) -> Tensor:
    return torch.where(sign_B < 0.5, -strength_B, strength_B)


def _per_row(values_B: Tensor) -> Tensor:
    return values_B[:, None, None, None]
