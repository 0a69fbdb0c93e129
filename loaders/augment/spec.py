"""Settings of the augmentations on the device, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

Fill = Literal["noise", "color", "mean"]
Policy = Literal["none", "rand", "trivial", "auto_imagenet", "auto_cifar10", "three"]
POLICIES: tuple[str, ...] = get_args(Policy)
Operations = Literal["torchvision", "timm"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class EraseSpec:
    """Random erasing.

    Attributes:
        probability: of a box, for each image.
        area: least and most area of the box, as a fraction of the image.
        ratio: least and most height over width of the box.
        fill: what covers the box: "noise" (each pixel standard normal, after normalisation), "color" (one such colour for
            the box), "mean" (the mean colour).

    Raises:
        ValueError: For a value out of its range.
    """

    probability: float = 0.0
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 10 / 3)
    fill: Fill = "noise"

    def __post_init__(self) -> None:
        check_fraction("erase", self.probability)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"erase area is {self.area}; it must be two numbers with 0 < least <= most <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"erase ratio is {self.ratio}; it must be two numbers with 0 < least <= most")
        check_choice("erase fill", self.fill, get_args(Fill))


@dataclass(frozen=True)
class PolicySpec:
    """A policy that chooses operations for each image.

    Attributes:
        name: one of POLICIES.
        ops: operations in a row ("rand").
        magnitude: strength from 0 to 30 ("rand").
        magnitude_std: standard deviation of the strength over images and operations ("rand").
        probability: of each operation ("rand").
        operations: whose operations, and how strong ("rand").

    Raises:
        ValueError: For a value out of its range.
    """

    name: Policy = "none"
    ops: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.0
    probability: float = 1.0
    operations: Operations = "torchvision"

    def __post_init__(self) -> None:
        check_choice("policy", self.name, POLICIES)
        check_choice("policy operations", self.operations, get_args(Operations))
        check_fraction("policy probability", self.probability)
        if self.ops < 1 or not 0 <= self.magnitude <= 30 or not self.magnitude_std >= 0:
            raise ValueError(f"{self}: ops is at least 1, magnitude in [0, 30] and magnitude_std at least 0")


@dataclass(frozen=True)
class AugmentSpec:
    """All augmentations of one image, in the order in which they are applied.

    Attributes:
        padding: pixels of black around the image, out of which its size is cut anywhere; 0: none.
        policy: operations that are chosen for each image.
        color_jitter: how far brightness, contrast and saturation go from 1, and the hue from 0, at most 0.5; 0: not at all.
        cutout: side in pixels of a square that is covered with the mean colour; 0: none.
        erase: random erasing.
        interpolation: of the policy's shears, shifts and rotations.

    Raises:
        ValueError: For a value out of its range.
    """

    padding: int = 0
    policy: PolicySpec = field(default_factory=PolicySpec)
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    cutout: int = 0
    erase: EraseSpec = field(default_factory=EraseSpec)
    interpolation: Interpolation = "nearest"

    def __post_init__(self) -> None:
        check_choice("interpolation", self.interpolation, get_args(Interpolation))
        for name in ("padding", "cutout"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 pixels")
        if not all(x >= 0 for x in self.color_jitter) or self.color_jitter[3] > 0.5:
            raise ValueError(f"color_jitter is {self.color_jitter}; each is at least 0, and the last at most 0.5")


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless a value is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; a probability is in [0, 1]")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
