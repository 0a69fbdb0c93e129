"""Moments of streamed features: mean, whitening matrix, rank and the sums of each label's rows.

One pass over streamed blocks of features collects it, in D² and M·K·D numbers, whatever the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlpheads.memorization.arguments import check_label_range, check_num_labels
from rlpheads.memorization.probes.feature_blocks import Features, iterate_rows

RANK_TOLERANCE = 1e-6
"""Directions of the features whose standard deviation is below this share of the features' root mean square norm are
rounding (of float32, about 1e-7) and are left out: the sum of layer-normalised features, for one."""


class FeatureError(ValueError):
    """Features to which no probe can be fitted."""


@dataclass(frozen=True)
class Moments:
    """Sums over the rows of some features and over the rows of every label, fp64.

    Attributes:
        num_samples: N.
        mean_D: mean of the features.
        whitener_DR: (x − mean) @ whitener has the identity as its covariance; R is the rank.
        label_sums_MKD: sum of the centred features of each label in each draw.
        label_shares_MK: share of the samples that have each label.
    """

    num_samples: int
    mean_D: Tensor
    whitener_DR: Tensor
    label_sums_MKD: Tensor
    label_shares_MK: Tensor

    @property
    def rank(self) -> int:
        """Directions that the features span."""
        return self.whitener_DR.shape[1]

    @property
    def total_variance(self) -> Tensor:
        """Sum of the variances of all directions, 0-d."""
        return self.whitener_DR.square().sum(0).reciprocal().sum()  # a column's norm is one over a standard deviation


def collect_moments(features: Features, labels_MN: Tensor, num_labels: int) -> Moments:
    """Sum over the rows in one pass.

    Args:
        features: features (N, D).
        labels_MN: integers (M, N) in [0, K); M may be 0.
        num_labels: K.

    Raises:
        ValueError: no rows, rows of different widths, not as many rows as labels, features that are not finite, or labels
            that are no integers in [0, K).
    """
    num_labels = check_num_labels(num_labels)
    check_label_range("labels_MN", labels_MN, num_labels)
    totals: tuple[Tensor, Tensor, Tensor] | None = None
    for block_BD, labels_MB in iterate_rows(features, labels_MN):
        if totals is None:
            totals = _zero_totals(block_BD, len(labels_MN), num_labels)
        total_D, gram_DD, sums_MKD = totals
        if block_BD.shape[1] != len(total_D):
            raise ValueError(f"a block of features is {block_BD.shape[1]} wide, the ones before it {len(total_D)}")
        total_D += block_BD.sum(0)
        gram_DD.addmm_(block_BD.T, block_BD)
        for sums_KD, labels_B in zip(sums_MKD, labels_MB, strict=True):
            sums_KD.index_add_(0, labels_B, block_BD)
    if totals is None:
        raise ValueError("there are no rows of features to fit a probe to")
    total_D, gram_DD, sums_MKD = totals
    if not bool(gram_DD.isfinite().all()):
        raise FeatureError(
            "the features hold NaN or infinity (or overflow when squared): no probe can be fitted to them"
        )
    num_samples = labels_MN.shape[-1]
    mean_D = total_D / num_samples
    shares_MK = _label_shares(labels_MN, num_labels).to(mean_D)
    return Moments(
        num_samples=num_samples,
        mean_D=mean_D,
        whitener_DR=_whitener(gram_DD / num_samples, mean_D),
        label_sums_MKD=sums_MKD - shares_MK[:, :, None] * total_D,
        label_shares_MK=shares_MK,
    )


def _zero_totals(block_BD: Tensor, num_draws: int, num_labels: int) -> tuple[Tensor, Tensor, Tensor]:
    dim = block_BD.shape[1]
    return block_BD.new_zeros(dim), block_BD.new_zeros(dim, dim), block_BD.new_zeros(num_draws, num_labels, dim)


def _label_shares(labels_MN: Tensor, num_labels: int) -> Tensor:
    num_draws, num_samples = labels_MN.shape
    counts_MK = torch.zeros(num_draws, num_labels, dtype=torch.float64, device=labels_MN.device)
    counts_MK.scatter_add_(1, labels_MN.long(), counts_MK.new_ones(num_draws, num_samples))
    return counts_MK / num_samples


def _whitener(second_moment_DD: Tensor, mean_D: Tensor) -> Tensor:
    """Return eigenvectors of the covariance over their standard deviations, without the directions that are rounding."""
    variances_D, vectors_DD = torch.linalg.eigh(second_moment_DD - torch.outer(mean_D, mean_D))
    kept_D = variances_D > RANK_TOLERANCE**2 * second_moment_DD.trace()
    return vectors_DD[:, kept_D] / variances_D[kept_D].sqrt()
