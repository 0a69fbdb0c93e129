"""Mixup and CutMix (Zhang et al., 2017, arXiv:1710.09412; Yun et al., 2019, arXiv:1905.04899) of neighbours, on the device.

The partner of the row at global position g is the row at g XOR 1. Ranks and micro-batches hold an even number of rows, so
a partner is never elsewhere. What happens to a pair is keyed by (seed, epoch, its two indices), so that world size, loader
and place of resume change nothing. Both rows of a pair are mixed alike, each with its own sample dominant: its weight is at
least one half, and it is what a row's index, target and ledger entry stand for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from rlpheads.loaders.augment_boxes import box_mask
from rlpheads.loaders.augment_spec import check_fraction
from rlpheads.loaders.batch import Batch, Partners
from rlpheads.loaders.keyed_random import KeyedStream

NUM_QUANTILES = 2048
"""Intervals of the table that weights are drawn from; their distribution is off by less than one of them."""


@dataclass(frozen=True)
class MixSpec:
    """How pairs are mixed.

    Attributes:
        mixup: α of the Beta(α, α) distribution of the weights of mixup; 0: no mixup.
        cutmix: the same of CutMix; 0: no CutMix.
        probability: of mixing a pair at all.
        switch: probability of CutMix for a mixed pair where both are on.
        off_epoch: epoch from which on nothing is mixed; None: never.

    Raises:
        ValueError: For a value out of its range.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5
    off_epoch: int | None = None

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number of at least 0")
        check_fraction("the probability of mixing", self.probability)
        check_fraction("the probability of CutMix", self.switch)

    def mixes_in(self, epoch: int) -> bool:
        """Return whether pairs are mixed in an epoch."""
        return self.mixup + self.cutmix > 0 and (self.off_epoch is None or epoch < self.off_epoch)


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

    def forward(self, images_B3HW: Tensor, batch: Batch, epoch: int) -> tuple[Tensor, Batch]:
        """Mix normalised images (B, 3, H, W), B even; a row beside padding stays as it is.

        Returns:
            The mixed images in the same memory format, and the batch with its partners; in an epoch in which nothing is
            mixed, both as they were.
        """
        if not self.spec.mixes_in(epoch):
            return images_B3HW, batch
        size = images_B3HW.shape[-2:]
        pair_P2 = batch.index.view(-1, 2)
        draws_PU = self.stream.uniforms(epoch, pair_P2.amin(1), pair_P2.amax(1), num_draws=5)
        mixed_P = (draws_PU[:, 0] < self.spec.probability) & (pair_P2 >= 0).all(1)
        cut_P = draws_PU[:, 1] < self._share_of_cutmix
        weight_P = torch.where(mixed_P & ~cut_P, interpolated(self.mixup_Q, draws_PU[:, 2]), 1.0)
        start_P2, sides_P2 = cut_box(interpolated(self.cutmix_Q, draws_PU[:, 2]), draws_PU[:, 3:], size)
        sides_P2 = sides_P2 * (mixed_P & cut_P)[:, None]
        own_P1HW = weight_P[:, None, None, None] * ~box_mask(start_P2, sides_P2, size)
        weight_B = (weight_P - sides_P2.prod(1) / (size[0] * size[1])).repeat_interleave(2).to(torch.float32)
        own_B1HW = own_P1HW.repeat_interleave(2, dim=0).to(images_B3HW.dtype)
        # The weight stands at the end of the interpolation that is exact at 1: unmixed images keep their very bits.
        mixed_B3HW = torch.lerp(_swapped(images_B3HW), images_B3HW, own_B1HW)
        in_channels_last = images_B3HW.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if in_channels_last else torch.contiguous_format
        partners = Partners(_swapped(batch.targets), _swapped(batch.index), weight_B)
        return mixed_B3HW.contiguous(memory_format=memory_format), replace(batch, partners=partners)

    @property
    def _share_of_cutmix(self) -> float:
        if not self.spec.mixup:
            return 1.0
        return self.spec.switch if self.spec.cutmix else 0.0


def weight_quantiles(alpha: float) -> Tensor:
    """Return the quantiles of max(λ, 1 − λ) with λ of Beta(α, α): float64 (NUM_QUANTILES + 1,); all 1 for α = 0."""
    if not alpha:
        return torch.ones(NUM_QUANTILES + 1, dtype=torch.float64)
    from scipy.special import betaincinv

    quantiles_Q = betaincinv(alpha, alpha, np.linspace(0.5, 1.0, NUM_QUANTILES + 1))
    return torch.tensor([float(quantile) for quantile in quantiles_Q], dtype=torch.float64)


def interpolated(quantiles_Q: Tensor, uniforms_P: Tensor) -> Tensor:
    """Turn uniform numbers into numbers of the distribution whose quantiles are given: float64 (P,)."""
    place_P = uniforms_P * NUM_QUANTILES
    below_P = place_P.to(torch.int64)
    return torch.lerp(quantiles_Q[below_P], quantiles_Q[below_P + 1], place_P - below_P)


def cut_box(weight_P: Tensor, draws_P2: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Return the box of CutMix, cut off at the edges: int64 (P, 2) of (top, left), and of (height, width), in pixels.

    The box has the image's ratio and 1 − weight of its area; its middle is any pixel. As in timm.
    """
    side_P = torch.sqrt(1 - weight_P)
    starts, sides = [], []
    for axis, length in enumerate(size):
        cut_P = (length * side_P).to(torch.int64)
        middle_P = (draws_P2[:, axis] * length).to(torch.int64)
        start_P = (middle_P - cut_P // 2).clamp(0, length)
        starts.append(start_P)
        sides.append((middle_P + (cut_P + 1) // 2).clamp(0, length) - start_P)
    return torch.stack(starts, dim=1), torch.stack(sides, dim=1)


def _swapped(rows: Tensor) -> Tensor:
    """Exchange the rows of every pair."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
