"""Cross-entropy and the regularizers as functions of one row's softmax statistics: values and gradients in the logits.

With the log-odds d = z_y − log Σ_{j≠y} e^{z_j} of a label, −log p_y = softplus(−d) and −log(1 − p_y) = softplus(d):
neither 1 − p_y nor p_y/(1 − p_y) is ever formed, so no digit is lost at any margin. For a row with two labels a loss on
p_y is the weighted sum of the two labels' losses; the losses on the whole distribution do not see the labels.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlpheads.kernels.rows.partials import NO_CLASS_SHIFT
from rlpheads.kernels.rows.row_softmax import RowSoftmax, by_head


class Coefficients(NamedTuple):
    """dL/dz_j of each row as multiples of what the kernels sum: O(B) numbers in place of a B×K gradient.

    An "other" class is one that is none of the row's labels.
    """

    exp_B: Tensor
    """Multiplies e^{z_j − s} of every other class."""
    label_LB: Tensor
    """dL/dz at the labels; 0 where the second repeats the first. `uniform` comes on top."""
    moment_B: Tensor | None = None
    """Multiplies e^{z_j − s}·(z_j − s) of every other class."""
    uniform: float = 0.0
    """Is added at every class, labels included."""

    def by_head(self, num_heads: int) -> "list[Coefficients]":
        """Cut the rows of several heads, one head after another, into those of each."""
        if num_heads == 1:
            return [self]
        exp, label = by_head(self.exp_B, num_heads), by_head(self.label_LB, num_heads)
        moment = [None] * num_heads if self.moment_B is None else by_head(self.moment_B, num_heads)
        return [Coefficients(*parts, self.uniform) for parts in zip(exp, label, moment, strict=True)]


class Term(NamedTuple):
    """One loss: its value in each row and the coefficients of its gradient."""

    value_B: Callable[[RowSoftmax], Tensor]
    coefficients: Callable[[RowSoftmax], Coefficients]


def _cross_entropy(rows: RowSoftmax) -> Tensor:
    return (rows.labels.weight_LB * -rows.log_p).sum(0)


def _cross_entropy_coefficients(rows: RowSoftmax) -> Coefficients:
    """p_j − w_j; where w > ½ as (1 − w) − (1 − p), which does not cancel as p → 1."""
    odds_LB, weight_LB = rows.log_odds, rows.labels.weight_LB
    near_one_LB = (1 - weight_LB) - torch.sigmoid(-odds_LB)
    near_zero_LB = torch.sigmoid(odds_LB) - weight_LB
    label_LB = torch.where(weight_LB > 0.5, near_one_LB, near_zero_LB) * rows.labels.present_LB
    return Coefficients(rows.inverse_sum_B, label_LB)


def _unlikelihood(rows: RowSoftmax) -> Tensor:
    return (rows.labels.weight_LB * -F.logsigmoid(-rows.log_odds)).sum(0)


def _unlikelihood_coefficients(rows: RowSoftmax) -> Coefficients:
    """Of one label p_y·(δ_jy − e^{z_j}/Σ_{i≠y} e^{z_i}); with two, each is among the other's rest."""
    share_LB = rows.labels.weight_LB * torch.sigmoid(rows.log_odds)
    exp_B = -(share_LB * torch.exp(-rows.log_rest_LB)).sum(0)
    if len(share_LB) == 1:
        return Coefficients(exp_B, share_LB)
    in_rest_LB = share_LB.flip(0) * torch.exp(rows.offset - rows.log_rest_LB.flip(0))
    in_rest_LB = torch.where(rows.labels.present_LB[1] > 0, in_rest_LB, 0)  # a repeated label may make it 0·∞
    return Coefficients(exp_B, share_LB - in_rest_LB)


def _reversal(rows: RowSoftmax) -> Tensor:
    return -_cross_entropy(rows)


def _reversal_coefficients(rows: RowSoftmax) -> Coefficients:
    exp_B, label_LB, _, _ = _cross_entropy_coefficients(rows)
    return Coefficients(-exp_B, -label_LB)


def _uniform(rows: RowSoftmax) -> Tensor:
    return rows.log_sum_B + (rows.shift_B - rows.sum_logits_B / rows.num_labels)


def _uniform_coefficients(rows: RowSoftmax) -> Coefficients:
    """p_j − 1/K."""
    label_LB = torch.sigmoid(rows.log_odds) * rows.labels.present_LB
    return Coefficients(rows.inverse_sum_B, label_LB, uniform=-1 / rows.num_labels)


def _entropy(rows: RowSoftmax) -> Tensor:
    """KL(p ‖ uniform) = log K − H(p), the entropy written as its labels' terms plus the others', neither of which cancels."""
    log_p_LB = rows.log_p.clamp(min=NO_CLASS_SHIFT)
    labels_part_B = (-log_p_LB * log_p_LB.exp() * rows.labels.present_LB).sum(0)
    others_B = torch.exp(rows.log_others_B - rows.log_sum_B)
    others_part_B = others_B * rows.log_sum_B - rows.moment_others_B * rows.inverse_sum_B
    return math.log(rows.num_labels) - (labels_part_B + others_part_B)


def _entropy_coefficients(rows: RowSoftmax) -> Coefficients:
    """p_j·(o_j − ō) with o = z − s and ō its mean under p, which equals p_j·(log p_j + H).

    At a label, o_y − ō is expanded over the other classes, since o_y and ō agree in all digits as p_y → 1. Its offset is kept
    finite, as log p_y is: where p_y is 0, so is its product with them.
    """
    scale_B = rows.inverse_sum_B
    p_LB = torch.sigmoid(rows.log_odds) * rows.labels.present_LB
    offset_LB = rows.offset.clamp(min=NO_CLASS_SHIFT)
    moment_B = rows.moment_others_B * scale_B
    mean_offset_B = moment_B + (p_LB * offset_LB).sum(0)
    apart_LB = offset_LB * torch.exp(rows.log_others_B - rows.log_sum_B) - moment_B
    apart_LB = apart_LB + p_LB.flip(0) * (offset_LB - offset_LB.flip(0))
    return Coefficients(-mean_offset_B * scale_B, p_LB * apart_LB, moment_B=scale_B)


REGULARIZERS = {
    "unlikelihood": Term(_unlikelihood, _unlikelihood_coefficients),
    "uniform": Term(_uniform, _uniform_coefficients),
    "reversal": Term(_reversal, _reversal_coefficients),
    "entropy": Term(_entropy, _entropy_coefficients),
}
"""−log(1 − p_y), −(1/K) Σ log p_j, log p_y and KL(p ‖ uniform): all are to be minimised in the features."""

TERMS = {"cross_entropy": Term(_cross_entropy, _cross_entropy_coefficients), **REGULARIZERS}
