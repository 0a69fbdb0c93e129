"""What is done to training images on the device: the settings of every augmentation, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Fill = Literal["noise", "colour", "mean"]


@dataclass(frozen=True)
class EraseSpec:
    """Random erasing.

    Attributes:
        probability: of a box, for each image.
        area: least and most area of the box, as a fraction of the image.
        ratio: least and most height over width of the box.
        fill: what covers the box: "noise" (each pixel standard normal, after normalisation), "colour" (one such colour for
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
        check_choice("erase fill", self.fill, ("noise", "colour", "mean"))


@dataclass(frozen=True)
class AugmentSpec:
    """All of it, in the order in which it is done.

    Attributes:
        padding: pixels of black around the image, out of which its size is cut anywhere; 0: none.
        cutout: side in pixels of a square that is covered with the mean colour; 0: none.
        erase: random erasing.

    Raises:
        ValueError: For a value out of its range.
    """

    padding: int = 0
    cutout: int = 0
    erase: EraseSpec = field(default_factory=EraseSpec)

    def __post_init__(self) -> None:
        for name in ("padding", "cutout"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 pixels")


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless a value is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; a probability is in [0, 1]")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
