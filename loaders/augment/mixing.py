"""Mixup and CutMix (Zhang et al., 2017, arXiv:1710.09412; Yun et al., 2019, arXiv:1905.04899) of neighbours, on the device.

The partner of the row at global position g is the row at g XOR 1. Ranks and micro-batches hold an even number of rows, so
a partner is never elsewhere. What happens to a pair is keyed by (seed, epoch, its two indices), or to a whole batch by (seed,
epoch, step), so that world size, loader and place of resume change nothing. Each row has its own sample dominant: its weight
is at least one half, and it is what a row's index, target and ledger entry stand for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from rlpheads.loaders.augment.boxes import box_mask
from rlpheads.loaders.augment.spec import check_choice, check_fraction
from rlpheads.loaders.contract.batch import Batch, Partners
from rlpheads.loaders.contract.keyed_random import KeyedStream

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


class Mixer(nn.Module):
    """Mixes the images of neighbouring rows and adds the partners to the batch.

    Args:
        spec: how.
        seed: key of the run.
    """

    mixup_Q: Tensor
    cutmix_Q: Tensor

    def __init__(self, spec: MixSpec, seed: int) -> None:
        super().__init__()
        self.spec = spec
        self.stream = KeyedStream(seed, "mix")
        for name in ("mixup", "cutmix"):
            self.register_buffer(f"{name}_Q", weight_quantiles(getattr(spec, name)), persistent=False)

    def forward(self, batch: Batch, epoch: int, step: int) -> Batch:
        """Mix the rows of a batch, B even; a row beside padding stays as it is.

        Args:
            batch: this rank's share of the step, or a micro-batch of it, with normalised images: float (B, 3, H, W).
            epoch: epoch, from 0.
            step: step of the epoch, from 0.

        Returns:
            The batch with mixed images, in the same memory format, and its partners; in an epoch in which nothing is
            mixed, the batch itself.
        """
        if not self.spec.mixes_in(epoch):
            return batch
        images_B3HW = batch.images
        size = images_B3HW.shape[-2:]
        partners_B = _swap_pairs(batch.index)
        draws_BU = self._draws(batch.index, epoch, step)
        mixed_B = (draws_BU[:, 0] < self.spec.probability) & (batch.index >= 0) & (partners_B >= 0)
        cut_B = draws_BU[:, 1] < self._cutmix_probability
        weight_B = torch.where(mixed_B & ~cut_B, sample_quantiles(self.mixup_Q, draws_BU[:, 2]), 1.0)
        start_B2, sides_B2 = self._boxes(draws_BU[:, 2:], size)
        sides_B2 = sides_B2 * (mixed_B & cut_B)[:, None]
        area_B = sides_B2.prod(1) / (size[0] * size[1])
        # A box of more than half shows the row's own sample, and the partner's lies around it.
        covered_B1HW = box_mask(start_B2, sides_B2, size) ^ (area_B > 0.5)[:, None, None, None]
        own_B1HW = (weight_B[:, None, None, None] * ~covered_B1HW).to(images_B3HW.dtype)
        weight_B = (weight_B - torch.minimum(area_B, 1 - area_B)).to(torch.float32)
        # The weight stands at the end of the interpolation that is exact at 1: unmixed images keep their very bits.
        mixed_B3HW = torch.lerp(_swap_pairs(images_B3HW), images_B3HW, own_B1HW)
        in_channels_last = images_B3HW.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if in_channels_last else torch.contiguous_format
        partners = Partners(_swap_pairs(batch.targets), partners_B, weight_B)
        return replace(batch, images=mixed_B3HW.contiguous(memory_format=memory_format), partners=partners)

    def _draws(self, index_B: Tensor, epoch: int, step: int) -> Tensor:
        """Return uniform numbers, alike for rows that are mixed alike: float64 (B, 6)."""
        if self.spec.mode == "batch":
            step_1 = torch.full((1,), step, dtype=torch.int64, device=index_B.device)
            return self.stream.uniforms(epoch, step_1, num_draws=_NUM_DRAWS).expand(len(index_B), -1)
        if self.spec.mode == "elem":
            return self.stream.uniforms(epoch, index_B, _swap_pairs(index_B), num_draws=_NUM_DRAWS)
        pair_P2 = index_B.view(-1, 2)
        draws_PU = self.stream.uniforms(epoch, pair_P2.amin(1), pair_P2.amax(1), num_draws=_NUM_DRAWS)
        return draws_PU.repeat_interleave(2, dim=0)

    def _boxes(self, draws_B4: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Return the boxes of CutMix: int64 (B, 2) of (top, left), and of (height, width), in pixels."""
        if self.spec.cutmix_minmax is not None:
            return cutmix_box_minmax(self.spec.cutmix_minmax, draws_B4, size)
        return cutmix_box(sample_quantiles(self.cutmix_Q, draws_B4[:, 0]), draws_B4[:, 1:3], size)

    @property
    def _cutmix_probability(self) -> float:
        if not self.spec.mixup:
            return 1.0
        return self.spec.switch if self.spec.cuts else 0.0


def weight_quantiles(alpha: float) -> Tensor:
    """Return the quantiles of max(λ, 1 − λ) with λ of Beta(α, α): float64 (NUM_QUANTILES + 1,); all 1 for α = 0."""
    if not alpha:
        return torch.ones(NUM_QUANTILES + 1, dtype=torch.float64)
    from scipy.special import betaincinv

    quantiles_Q = betaincinv(alpha, alpha, np.linspace(0.5, 1.0, NUM_QUANTILES + 1))
    return torch.tensor([float(quantile) for quantile in quantiles_Q], dtype=torch.float64)


def sample_quantiles(quantiles_Q: Tensor, uniforms_B: Tensor) -> Tensor:
    """Sample a distribution from its quantiles by inverting uniform numbers: float64 (B,)."""
    place_B = uniforms_B * NUM_QUANTILES
    below_B = place_B.to(torch.int64)
    return torch.lerp(quantiles_Q[below_B], quantiles_Q[below_B + 1], place_B - below_B)


def cutmix_box(weight_B: Tensor, draws_B2: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Return the box of CutMix, cut off at the edges: int64 (B, 2) of (top, left), and of (height, width), in pixels.

    The box has the image's ratio and 1 − weight of its area; its middle is any pixel. As in timm.
    """
    side_B = torch.sqrt(1 - weight_B)
    starts, sides = [], []
    for axis, length in enumerate(size):
        cut_B = (length * side_B).to(torch.int64)
        middle_B = (draws_B2[:, axis] * length).to(torch.int64)
        start_B = (middle_B - cut_B // 2).clamp(0, length)
        starts.append(start_B)
        sides.append((middle_B + (cut_B + 1) // 2).clamp(0, length) - start_B)
    return torch.stack(starts, dim=1), torch.stack(sides, dim=1)


def cutmix_box_minmax(minmax: tuple[float, float], draws_B4: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Return a box wholly inside the image, with sides between two fractions of the image's: as `cutmix_box`. As in timm.

    Args:
        minmax: least and most side, as a fraction of the image's.
        draws_B4: uniform numbers for height, top, left and width.
        size: H and W of the images.
    """
    starts, sides = [], []
    for length, of_side, of_start in ((size[0], 0, 1), (size[1], 3, 2)):
        least, most = (int(length * bound) for bound in minmax)
        side_B = least + (draws_B4[:, of_side] * (most - least)).to(torch.int64)
        starts.append((draws_B4[:, of_start] * (length - side_B + 1)).to(torch.int64))
        sides.append(side_B)
    return torch.stack(starts, dim=1), torch.stack(sides, dim=1)


def _swap_pairs(rows: Tensor) -> Tensor:
    """Exchange the rows of every pair."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
