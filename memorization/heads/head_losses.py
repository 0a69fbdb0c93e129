"""Which loss terms the heads compute, and the per-row losses that they return for every tap and draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.loss_results import RandomLabelLoss, RandomLabelLosses


@dataclass(frozen=True)
class HeadTerms:
    """Which terms a forward pass computes beside the heads' own cross-entropy.

    Attributes:
        regularizer: kind of the regulariser, or None.
        regularized: positions in the list of taps (not block numbers) whose heads are regularised, ascending.
        joint: also return the cross-entropy whose gradient reaches the features.
        impl: implementation of the loss.
    """

    regularizer: str | None = None
    regularized: tuple[int, ...] = ()
    joint: bool = False
    impl: str = "auto"

    def __post_init__(self) -> None:
        if (self.regularizer is None) != (not self.regularized):
            raise ValueError(
                f"a regulariser goes with the taps it acts on: got regularizer={self.regularizer!r} and "
                f"regularized={self.regularized!r}"
            )
        if list(self.regularized) != sorted(set(self.regularized)):
            raise ValueError(f"regularized taps must ascend without repeats, got {self.regularized!r}")


MEASURING = HeadTerms()
"""Nothing beside the heads' own cross-entropy: no gradient reaches the features."""


class HeadLosses(NamedTuple):
    """Per-row results for T taps, M draws and B rows; R is the number of regularised taps.

    Every tensor is float32 (float64 for float64 heads) but `hit_TMB`, which is bool. Nothing is reduced or weighted.
    """

    cross_entropy_TMB: Tensor
    """-log p_y in nats; gradient to the heads only."""
    regularizer_RMB: Tensor | None
    """The regulariser; gradient to the features only. None without one."""
    joint_TMB: Tensor | None
    """-log p_y with gradient to the features only. None unless asked for."""
    hit_TMB: Tensor
    """Whether the head predicts the row's random label."""
    bits_TMB: Tensor
    """log2 K + log2 p_y."""
    margin_TMB: Tensor
    """Logit of the label minus the greatest other logit."""

    @property
    def own(self) -> HeadLosses:
        """The losses of this rank's rows: all of them."""
        return self


class GatheredLosses(NamedTuple):
    """What heads return whose classes are sharded over ranks: losses of the rows of all ranks, the same at every rank.

    A scalar that is back-propagated is to be made of all of them, alike at every rank: `combine_losses` does.
    """

    losses: HeadLosses
    """Of G rows, rank by rank."""
    valid_G: Tensor
    """bool; False for padding rows."""
    first_row: int
    """Where this rank's rows begin."""
    num_rows: int
    """How many they are."""

    @property
    def own(self) -> HeadLosses:
        """The losses of this rank's rows."""
        rows = slice(self.first_row, self.first_row + self.num_rows)
        own = {name: each[..., rows] for name, each in self.losses._asdict().items() if each is not None}
        return self.losses._replace(**own)


def mix_pair_losses(loss: RandomLabelLoss, other: RandomLabelLoss, weight_B: Tensor) -> RandomLabelLoss:
    """Average the losses of the two labels of mixed rows; the measurements stay those of the first label.

    Args:
        loss: results for the first labels.
        other: results for the second labels.
        weight_B: weight of the first label, in [0, 1].
    """

    def average(first_B: Tensor, second_B: Tensor) -> Tensor:
        return torch.lerp(second_B, first_B, weight_B.to(first_B.dtype))

    def average_if_computed(first_B: Tensor | None, second_B: Tensor | None) -> Tensor | None:
        return None if first_B is None or second_B is None else average(first_B, second_B)

    return loss._replace(
        cross_entropy_B=average(loss.cross_entropy_B, other.cross_entropy_B),
        regularizer_B=average_if_computed(loss.regularizer_B, other.regularizer_B),
        joint_B=average_if_computed(loss.joint_B, other.joint_B),
    )


def losses_by_tap(losses: RandomLabelLosses, num_draws: int) -> HeadLosses:
    """The results of T·M heads, tap-major, as tensors (T, M, B): views."""
    members = [None if rows_HB is None else rows_HB.unflatten(0, (-1, num_draws)) for rows_HB in losses[:6]]
    return HeadLosses._make(members)
