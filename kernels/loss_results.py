"""What the random-label loss returns: values of every row, of one head or of several."""

from collections.abc import Sequence
from itertools import starmap
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.head_rows.head_rows import HeadRows


class RandomLabelLoss(NamedTuple):
    """What `random_label_loss` returns: all (B,), float32, or float64 if an input is; `hit_B` is bool.

    Only the first three carry a gradient.
    """

    cross_entropy_B: Tensor
    """−log p_y. Its gradient reaches weight and bias, never the features."""
    regularizer_B: Tensor | None
    """The regularizer. Its gradient reaches the features, never weight or bias. None when none was asked for."""
    joint_B: Tensor | None
    """−log p_y once more, with its gradient reaching the features only. None unless asked for."""
    hit_B: Tensor
    """Whether the label has the largest logit, ties to the lowest label."""
    bits_B: Tensor
    """log2 K + log2 p_y: bits that the head knows about the label."""
    margin_B: Tensor
    """z_y − max_{j≠y} z_j."""
    lse_B: Tensor
    """log Σ_j e^{z_j}."""


class RandomLabelLosses(NamedTuple):
    """What `random_label_losses` returns of H heads: the members of `RandomLabelLoss`, (H, B) each."""

    cross_entropy_HB: Tensor
    regularizer_HB: Tensor | None
    joint_HB: Tensor | None
    hit_HB: Tensor
    bits_HB: Tensor
    margin_HB: Tensor
    lse_HB: Tensor

    def by_head(self) -> list[RandomLabelLoss]:
        """One `RandomLabelLoss` for each head."""
        nothing = (None,) * len(self.hit_HB)
        members = [nothing if rows_HB is None else rows_HB.unbind() for rows_HB in self]
        return list(starmap(RandomLabelLoss, zip(*members, strict=True)))

    @classmethod
    def stacked(cls, losses: Sequence[RandomLabelLoss]) -> "RandomLabelLosses":
        """Undo `by_head`."""
        return cls._make(None if each[0] is None else torch.stack(each) for each in zip(*losses, strict=True))


def loss_without_gradient(rows: HeadRows) -> RandomLabelLoss:
    """Return what the merged rows say, without gradient routes; regulariser and joint term are None."""
    return RandomLabelLoss(
        cross_entropy_B=rows.cross_entropy_B,
        regularizer_B=None,
        joint_B=None,
        hit_B=rows.hit_B,
        bits_B=rows.bits_B,
        margin_B=rows.margin_B,
        lse_B=rows.lse_B,
    )
