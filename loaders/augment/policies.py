"""Policies that choose operations for each image: RandAugment, TrivialAugment, AutoAugment and three-augment.

Each image of a batch gets its own operations at its own strength, keyed by (seed, epoch, index). The spaces of operations
and strengths are those of torchvision's classes of these names, or for RandAugment timm's.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rlpheads.loaders.augment.operations import (
    MAX_MAGNITUDE,
    NUMBER,
    PAPER_SPACE,
    RAND_SETS,
    WIDE_SPACE,
    DrawnOperation,
    Space,
)
from rlpheads.loaders.augment.pixel_operations import MAX_BLUR
from rlpheads.loaders.augment.pixel_plan import PixelKind, PixelPlanner, PixelStep
from rlpheads.loaders.augment.spec import PolicySpec
from rlpheads.loaders.augment.tables import AUTO_POLICIES
from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.keyed_random import normals, uniforms

_RANDOM = NUMBER["Equalize"] + 1
"""The first so many operations are those of torchvision's TrivialAugment."""


class OperationPolicy(Protocol):
    """A policy that draws from OPERATIONS."""

    space: Space

    def draw(self, index_B: Int64Array, epoch: int) -> list[DrawnOperation]:
        """Return the operations of images, one after the other."""
        ...


class PolicyPlanner:
    """What a policy that draws from OPERATIONS does to the bytes.

    Args:
        policy: draws.
    """

    def __init__(self, policy: OperationPolicy) -> None:
        self.policy = policy

    def plan(self, index_B: Int64Array, epoch: int, size: tuple[int, int]) -> list[PixelStep]:
        """See `PixelPlanner`."""
        return [drawn.plan(self.policy.space, size) for drawn in self.policy.draw(index_B, epoch)]


class RandAugment:
    """Some operations in a row, all as strong (Cubuk et al., 2019, arXiv:1909.13719).

    Args:
        spec: how many, how strong, how likely, and whose.
        seed: key of the run.
    """

    def __init__(self, spec: PolicySpec, seed: int) -> None:
        self.spec = spec
        self.seed = seed
        numbers, self.space = RAND_SETS[spec.operations]
        self.numbers_S = np.array(numbers, dtype=np.int64)

    def draw(self, index_B: Int64Array, epoch: int) -> list[DrawnOperation]:
        """See `OperationPolicy`."""
        num_ops, spec = self.spec.ops, self.spec
        draws_BO3 = uniforms(self.seed, epoch, index_B, 3 * num_ops, stream="rand augment").reshape(-1, num_ops, 3)
        magnitude_BO = np.full((len(index_B), num_ops), spec.magnitude, dtype=np.float32)
        if spec.magnitude_std:
            noise_BO = normals(self.seed, epoch, index_B, num_ops, stream="rand augment magnitude")
            magnitude_BO = np.clip(magnitude_BO + np.float32(spec.magnitude_std) * noise_BO, 0, MAX_MAGNITUDE)
        drawn = []
        for step in range(num_ops):
            applied_B, choice_B, sign_B = draws_BO3[:, step].T
            chosen_B = self.numbers_S[(choice_B * len(self.numbers_S)).astype(np.int64)]
            number_B = np.where(applied_B < spec.probability, chosen_B, 0)
            drawn.append(DrawnOperation(number_B, _apply_sign(magnitude_BO[:, step] / MAX_MAGNITUDE, sign_B)))
        return drawn


class TrivialAugment:
    """One operation at any strength, in the wide space (Müller & Hutter, 2021, arXiv:2103.10158).

    Args:
        seed: key of the run.
    """

    space = WIDE_SPACE

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def draw(self, index_B: Int64Array, epoch: int) -> list[DrawnOperation]:
        """See `OperationPolicy`."""
        choice_B, magnitude_B, sign_B = uniforms(self.seed, epoch, index_B, 3, stream="trivial augment").T
        number_B = (choice_B * _RANDOM).astype(np.int64)
        strength_B = np.floor(magnitude_B * (MAX_MAGNITUDE + 1)) / MAX_MAGNITUDE
        return [DrawnOperation(number_B, _apply_sign(strength_B, sign_B))]


class AutoAugment:
    """One of 25 learned pairs of operations (Cubuk et al., 2018, arXiv:1805.09501).

    Args:
        policy: "imagenet" or "cifar10", the data that it was learned on.
        seed: key of the run.
    """

    space = PAPER_SPACE

    def __init__(self, policy: str, seed: int) -> None:
        self.seed = seed
        rows = AUTO_POLICIES[policy]
        self.number_P2 = np.array([[NUMBER[name] for name, _, _ in pair] for pair in rows])
        # float32, as which they were always compared: a draw between it and the decimal number would choose otherwise.
        self.probability_P2 = np.array([[likely for _, likely, _ in pair] for pair in rows], dtype=np.float32)
        self.strength_P2 = np.array([[magnitude / 9 for _, _, magnitude in pair] for pair in rows], dtype=np.float32)

    def draw(self, index_B: Int64Array, epoch: int) -> list[DrawnOperation]:
        """See `OperationPolicy`."""
        draws_BU = uniforms(self.seed, epoch, index_B, 5, stream="auto augment")
        row_B = (draws_BU[:, 0] * len(self.number_P2)).astype(np.int64)
        drawn = []
        for step in range(2):
            applied_B, sign_B = draws_BU[:, 1 + 2 * step : 3 + 2 * step].T
            number_B = np.where(applied_B < self.probability_P2[row_B, step], self.number_P2[row_B, step], 0)
            drawn.append(DrawnOperation(number_B, _apply_sign(self.strength_P2[row_B, step], sign_B)))
        return drawn


class ThreeAugment:
    """Grey, or solarised at one half, or blurred, each as likely (Touvron et al., 2022, arXiv:2204.07118).

    The blur's standard deviation is uniform from 0.1 to 2 pixels.

    Args:
        seed: key of the run.
    """

    KINDS = np.array([PixelKind.COLOR, PixelKind.SOLARIZE, PixelKind.BLUR], dtype=np.int32)

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def plan(self, index_B: Int64Array, epoch: int, size: tuple[int, int]) -> list[PixelStep]:  # noqa: ARG002
        """See `PixelPlanner`."""
        choice_B, width_B = uniforms(self.seed, epoch, index_B, 2, stream="three augment").T
        number_B = (choice_B * 3).astype(np.int64)
        values_B = np.choose(number_B, [0.0, 128.0, 0.1 + (MAX_BLUR - 0.1) * width_B])
        return [PixelStep.of(self.KINDS[number_B], values_B)]


class ColorJitter:
    """Change brightness, contrast and saturation in an order of each image's own, then the hue.

    A ratio is uniform from 1 − x to 1 + x (from 0, where x is above 1). torchvision's class differs in one thing: it puts
    the hue anywhere among the others.

    Args:
        ranges: x for brightness, contrast and saturation, and the largest turn of the hue, from 0 to 0.5.
        seed: key of the run.
    """

    ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    KINDS = np.array([PixelKind.BRIGHTNESS, PixelKind.CONTRAST, PixelKind.COLOR], dtype=np.int32)

    def __init__(self, ranges: tuple[float, float, float, float], seed: int) -> None:
        self.ranges = ranges
        self.seed = seed

    def plan(self, index_B: Int64Array, epoch: int, size: tuple[int, int]) -> list[PixelStep]:  # noqa: ARG002
        """See `PixelPlanner`."""
        draws_B5 = uniforms(self.seed, epoch, index_B, 5, stream="color jitter")
        order_B3 = np.array(self.ORDERS)[(draws_B5[:, 0] * len(self.ORDERS)).astype(np.int64)]
        least_3, most_3 = np.array([(max(0.0, 1 - x), 1 + x) for x in self.ranges[:3]]).T
        ratio_B3 = least_3 + draws_B5[:, 1:4] * (most_3 - least_3)
        steps = []
        for place_B in order_B3.T if any(self.ranges[:3]) else ():
            ratio_B = np.take_along_axis(ratio_B3, place_B[:, None], axis=1)[:, 0]
            steps.append(PixelStep.of(self.KINDS[place_B], ratio_B))
        if self.ranges[3]:
            steps.append(PixelStep.of(PixelKind.HUE, (2 * draws_B5[:, 4] - 1) * self.ranges[3]))
        return steps


def make_policy(spec: PolicySpec, seed: int) -> PixelPlanner:
    """Return the planner of a policy that is not "none"."""
    if spec.name == "three":
        return ThreeAugment(seed)
    if spec.name == "rand":
        return PolicyPlanner(RandAugment(spec, seed))
    if spec.name == "trivial":
        return PolicyPlanner(TrivialAugment(seed))
    return PolicyPlanner(AutoAugment(spec.name.removeprefix("auto_"), seed))


def _apply_sign(strength_B: NDArray[np.floating], sign_B: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.where(sign_B < 0.5, -strength_B, strength_B)
