"""Mixup and CutMix (Zhang et al., 2017, arXiv:1710.09412; Yun et al., 2019, arXiv:1905.04899) of neighbours, on the device.

The partner of the row at global position g is the row at g XOR 1. Ranks and micro-batches hold an even number of rows, so
a partner is never elsewhere. What happens to a pair is keyed by (seed, epoch, its two indices), or to a whole batch by (seed,
epoch, step), so that world size, loader and place of resume change nothing. Each row has its own sample dominant: its weight
is at least one half, and it is what a row's index, target and ledger entry stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlpheads.loaders.augment.boxes import box_mask
from rlpheads.loaders.augment.pixel_plan import upload
from rlpheads.loaders.augment.spec import check_choice, check_fraction
from rlpheads.loaders.contract.arrays import FloatArray, Int64Array
from rlpheads.loaders.contract.batch import Batch, Partners
from rlpheads.loaders.contract.keyed_random import uniform_rows

MixMode = Literal["pair", "elem", "batch"]
NUM_QUANTILES = 2048
"""Intervals of the table that weights are drawn from; their distribution is off by less than one of them."""
_NUM_DRAWS = 6
"""Whether to mix, which way, weight or height of the box, its middle or its top and left, its width."""


@dataclass(frozen=True)
class MixSpec:
    """How pairs are mixed.

    Attributes:
        mixup: α of the Beta(α, α) distribution of the weights of mixup; 0: no mixup.
        cutmix: the same of CutMix; 0: no CutMix, or boxes by `cutmix_minmax`.
        probability: of mixing at all.
        switch: probability of CutMix instead of mixup for a mixed pair, where both are on.
        off_epoch: epoch from which on nothing is mixed; None: never.
        mode: what shares a weight, a box and the choice of mixup or CutMix: the two rows of a "pair", each row ("elem") by
            itself, or the whole global "batch".
        cutmix_minmax: least and most side of CutMix's boxes as a fraction of the image's, each side uniform; None: by
            `cutmix`.

    Raises:
        ValueError: For a value out of its range.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5
    off_epoch: int | None = None
    mode: MixMode = "pair"
    cutmix_minmax: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number of at least 0")
        check_fraction("the probability of mixing", self.probability)
        check_fraction("the probability of CutMix", self.switch)
        check_choice("mode", self.mode, get_args(MixMode))
        sides = self.cutmix_minmax
        if sides is not None and not 0 <= sides[0] <= sides[1] <= 1:
            raise ValueError(f"cutmix_minmax is {sides}; it must be two numbers with 0 <= least <= most <= 1")
        if sides is not None and self.cutmix:
            raise ValueError(f"cutmix is {self.cutmix}; it must be 0 where cutmix_minmax says how large the boxes are")

    @property
    def cuts(self) -> bool:
        """Whether there is CutMix."""
        return self.cutmix > 0 or self.cutmix_minmax is not None

    def mixes_in(self, epoch: int) -> bool:
        """Return whether anything is mixed in an epoch."""
        return (self.mixup > 0 or self.cuts) and (self.off_epoch is None or epoch < self.off_epoch)


class MixPlan(NamedTuple):
    """How the rows of a batch are mixed.

    Attributes:
        weight_B: float64, of the row's own sample where it is not covered; 1: no mixup.
        boxes_B4: int64, top, left, height and width of CutMix's box in pixels; no height and width: no CutMix.
        around_B: bool, whether the partner lies around the box: one of more than half shows the row's own sample.
        share_B: float64, of the row's own sample in the mixed image, from 1/2 to 1.
    """

    weight_B: FloatArray
    boxes_B4: Int64Array
    around_B: NDArray[np.bool_]
    share_B: FloatArray


PairMixing = Callable[[Tensor, FloatArray, Int64Array, NDArray[np.bool_]], bool]
"""Mixes in place by the first three columns of a plan, or returns False for images that it does not take."""


class Mixer:
    """Mixes the images of neighbouring rows and adds the partners to the batch. What is mixed how is planned on the host.

    Args:
        spec: how.
        seed: key of the run.
        in_place: mixes images that it takes (`rlpheads.kernels.pixels.mixing_native`); None: PyTorch's operations do.
    """

    def __init__(self, spec: MixSpec, seed: int, in_place: PairMixing | None = None) -> None:
        self.spec = spec
        self.seed = seed
        self.in_place = in_place
        self.mixup_Q = weight_quantiles(spec.mixup)
        self.cutmix_Q = weight_quantiles(spec.cutmix)

    def __call__(self, batch: Batch, epoch: int, step: int) -> Batch:
        """Mix the rows of a batch, B even; a row beside padding stays as it is.

        Args:
            batch: this rank's share of the step, or a micro-batch of it, with normalised images: float (B, 3, H, W). With
                `in_place` they are changed.
            epoch: epoch, from 0.
            step: step of the epoch, from 0.

        Returns:
            The batch with mixed images, in the same memory format, and its partners; in an epoch in which nothing is
            mixed, the batch itself.
        """
        if not self.spec.mixes_in(epoch):
            return batch
        images_B3HW = batch.images
        plan = self.plan(batch.index_on_host, epoch, step, images_B3HW.shape[-2:])
        if self.in_place is None or not self.in_place(images_B3HW, *plan[:3]):
            images_B3HW = _mix_by_masks(images_B3HW, plan)
        weight_B = upload(plan.share_B.astype(np.float32), images_B3HW.device)
        partners = Partners(_swap_pairs(batch.targets), _swap_pairs(batch.index), weight_B)
        return replace(batch, images=images_B3HW, partners=partners)

    def plan(self, index_B: Int64Array, epoch: int, step: int, size: torch.Size) -> MixPlan:
        """Return how rows with these canonical indices are mixed, B even, in images of (H, W) pixels."""
        partners_B = index_B.reshape(-1, 2)[:, ::-1].reshape(-1)
        draws_UB = self._draws(index_B, partners_B, epoch, step)
        mixed_B = (draws_UB[0] < self.spec.probability) & (index_B >= 0) & (partners_B >= 0)
        cut_B = draws_UB[1] < self._cutmix_probability
        weight_B = np.where(mixed_B & ~cut_B, sample_quantiles(self.mixup_Q, draws_UB[2]), 1.0)
        start_B2, sides_B2 = self._boxes(draws_UB[2:].T, size)
        sides_B2 = sides_B2 * (mixed_B & cut_B)[:, None]
        area_B = sides_B2.prod(1) / (size[0] * size[1])
        share_B = weight_B - np.minimum(area_B, 1 - area_B)
        return MixPlan(weight_B, np.concatenate([start_B2, sides_B2], axis=1), area_B > 0.5, share_B)

    def _draws(self, index_B: Int64Array, partners_B: Int64Array, epoch: int, step: int) -> FloatArray:
        """Return uniform numbers, alike for rows that are mixed alike: float64 (6, B)."""
        names: tuple[Int64Array, ...]
        if self.spec.mode == "batch":
            names = (np.full(len(index_B), step, dtype=np.int64),)
        elif self.spec.mode == "elem":
            names = (index_B, partners_B)
        else:
            names = (np.minimum(index_B, partners_B), np.maximum(index_B, partners_B))
        return uniform_rows(self.seed, epoch, *names, num_draws=_NUM_DRAWS, stream="mix")

    def _boxes(self, draws_B4: FloatArray, size: torch.Size) -> tuple[Int64Array, Int64Array]:
        """Return the boxes of CutMix: int64 (B, 2) of (top, left), and of (height, width), in pixels."""
        if self.spec.cutmix_minmax is not None:
            return cutmix_box_minmax(self.spec.cutmix_minmax, draws_B4, size)
        return cutmix_box(sample_quantiles(self.cutmix_Q, draws_B4[:, 0]), draws_B4[:, 1:3], size)

    @property
    def _cutmix_probability(self) -> float:
        if not self.spec.mixup:
            return 1.0
        return self.spec.switch if self.spec.cuts else 0.0


def weight_quantiles(alpha: float) -> FloatArray:
    """Return the quantiles of max(λ, 1 − λ) with λ of Beta(α, α): float64 (NUM_QUANTILES + 1,); all 1 for α = 0."""
    if not alpha:
        return np.ones(NUM_QUANTILES + 1)
    from scipy.special import betaincinv

    return np.asarray(betaincinv(alpha, alpha, np.linspace(0.5, 1.0, NUM_QUANTILES + 1)), dtype=np.float64)


def sample_quantiles(quantiles_Q: FloatArray, uniforms_B: FloatArray) -> FloatArray:
    """Sample a distribution from its quantiles by inverting uniform numbers: float64 (B,)."""
    place_B = uniforms_B * NUM_QUANTILES
    below_B = place_B.astype(np.int64)
    part_B, low_B, high_B = place_B - below_B, quantiles_Q[below_B], quantiles_Q[below_B + 1]
    # As torch.lerp rounds it.
    return np.where(part_B < 0.5, low_B + part_B * (high_B - low_B), high_B - (high_B - low_B) * (1 - part_B))


def cutmix_box(weight_B: FloatArray, draws_B2: FloatArray, size: torch.Size) -> tuple[Int64Array, Int64Array]:
    """Return the box of CutMix, cut off at the edges: int64 (B, 2) of (top, left), and of (height, width), in pixels.

    The box has the image's ratio and 1 − weight of its area; its middle is any pixel. As in timm.
    """
    side_B = np.sqrt(1 - weight_B)
    starts, sides = [], []
    for axis, length in enumerate(size):
        cut_B = (length * side_B).astype(np.int64)
        middle_B = (draws_B2[:, axis] * length).astype(np.int64)
        start_B = (middle_B - cut_B // 2).clip(0, length)
        starts.append(start_B)
        sides.append((middle_B + (cut_B + 1) // 2).clip(0, length) - start_B)
    return np.stack(starts, axis=1), np.stack(sides, axis=1)


def cutmix_box_minmax(
    minmax: tuple[float, float], draws_B4: FloatArray, size: torch.Size
) -> tuple[Int64Array, Int64Array]:
    """Return a box wholly inside the image, with sides between two fractions of the image's: as `cutmix_box`. As in timm.

    Args:
        minmax: least and most side, as a fraction of the image's.
        draws_B4: uniform numbers for height, top, left and width.
        size: H and W of the images.
    """
    starts, sides = [], []
    for length, of_side, of_start in ((size[0], 0, 1), (size[1], 3, 2)):
        least, most = (int(length * bound) for bound in minmax)
        side_B = least + (draws_B4[:, of_side] * (most - least)).astype(np.int64)
        starts.append((draws_B4[:, of_start] * (length - side_B + 1)).astype(np.int64))
        sides.append(side_B)
    return np.stack(starts, axis=1), np.stack(sides, axis=1)


def _mix_by_masks(images_B3HW: Tensor, plan: MixPlan) -> Tensor:
    """Return the mixed images, in new memory of the same format."""
    columns_B6 = np.concatenate([plan.boxes_B4, plan.around_B[:, None], plan.weight_B[:, None]], axis=1)
    columns = upload(columns_B6, images_B3HW.device)
    boxes_B4 = columns[:, :4].to(torch.int64)
    around_B111, weight_B111 = (columns[:, place, None, None, None] for place in (4, 5))
    covered_B1HW = box_mask(boxes_B4[:, :2], boxes_B4[:, 2:], images_B3HW.shape[-2:]) ^ (around_B111 > 0)
    own_B1HW = (weight_B111 * ~covered_B1HW).to(images_B3HW.dtype)
    # The weight stands at the end of the interpolation that is exact at 1: unmixed images keep their very bits.
    mixed_B3HW = torch.lerp(_swap_pairs(images_B3HW), images_B3HW, own_B1HW)
    in_channels_last = images_B3HW.is_contiguous(memory_format=torch.channels_last)
    return mixed_B3HW.contiguous(memory_format=torch.channels_last if in_channels_last else torch.contiguous_format)


def _swap_pairs(rows: Tensor) -> Tensor:
    """Exchange the rows of every pair."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
