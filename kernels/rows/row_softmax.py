"""Online softmax: each row's statistics over all classes, merged from the partials of the class ranges.

Everything is kept relative to a shift s that is the largest logit of a class other than the row's labels, and the
labels' own terms apart from the others' sum: no digit of 1 − p_y is lost however far a label's logit lies above the rest.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlpheads.kernels.rows.partials import Partials


class RowLabels(NamedTuple):
    """The labels of each row (L = 1 or 2) and how much each counts."""

    index_LB: Tensor
    """int64 labels in [0, K)."""
    weight_LB: Tensor
    """Weights, summing to 1; the second label's is 0 where it repeats the first."""
    present_LB: Tensor
    """1 where the label is a class of its own, 0 where it repeats the first label; in the dtype of the weights."""


class LabelsOfRows(NamedTuple):
    """Labels as they are given: of the rows of all heads, one head after another."""

    index_LB: Tensor
    """int64; two for mixed rows."""
    first_weight_B: Tensor | None
    """Of mixed rows the weight in [0, 1] of the first label; None where a row has one label."""


class RowSoftmax(NamedTuple):
    """Statistics of each row over all classes, from which every loss and every gradient's coefficients follow."""

    labels: RowLabels
    num_labels: int
    """K."""
    label_logit_LB: Tensor
    """z_y, the very numbers that the sums were made from."""
    shift_B: Tensor
    """s."""
    log_others_B: Tensor
    """log Σ e^{z_j − s} over the classes that are none of the row's labels; −inf where there is none."""
    log_rest_LB: Tensor
    """log Σ e^{z_j − s} over all classes but this label."""
    log_sum_B: Tensor
    """log Σ e^{z_j − s} over all classes."""
    inverse_sum_B: Tensor
    """1/Σ e^{z_j − s} over all classes; e^{−log Σ} would carry the rounding of log Σ, which is that of a number as large as
    log K."""
    moment_others_B: Tensor
    """Σ e^{z_j − s}·(z_j − s) over the classes that are none of the row's labels (for `entropy`)."""
    sum_logits_B: Tensor
    """Σ z_j over all classes (for `uniform`)."""
    max_before_B: Tensor
    """Largest logit of a class below the first label; −inf where there is none."""
    max_after_B: Tensor
    """Largest logit of a class above the first label; −inf where there is none."""

    @property
    def offset(self) -> Tensor:
        """Label logits relative to the shift, z_y − s, (L, B)."""
        return self.label_logit_LB - self.shift_B

    @property
    def log_odds(self) -> Tensor:
        """Log-odds log(p_y / (1 − p_y)) of each label, (L, B)."""
        return self.offset - self.log_rest_LB

    @property
    def log_p(self) -> Tensor:
        """Log p_y of each label, (L, B), without cancellation."""
        return F.logsigmoid(self.log_odds)

    @property
    def bits(self) -> Tensor:
        """log2 K + log2 p_y of the first label, (B,)."""
        return (math.log(self.num_labels) + self.log_p[0]) / math.log(2)

    @property
    def lse(self) -> Tensor:
        """Log Σ e^{z_j} over all classes, (B,)."""
        return self.shift_B + self.log_sum_B

    @property
    def hit(self) -> Tensor:
        """Whether the first label is the argmax, ties to the lowest index, (B,) bool."""
        return (self.label_logit_LB[0] > self.max_before_B) & (self.label_logit_LB[0] >= self.max_after_B)

    @property
    def margin(self) -> Tensor:
        """Margin z_y − max_{j≠y} z_j of the first label, (B,)."""
        return self.label_logit_LB[0] - torch.maximum(self.max_before_B, self.max_after_B)


def row_labels(index_LB: Tensor, first_weight_B: Tensor | None, dtype: torch.dtype) -> RowLabels:
    """Labels and weights of each row, a repeated second label merged into the first.

    `index_LB` is int64; `first_weight_B` is the weight of the first of two labels, None where there is one; `dtype` is that
    of the statistics.
    """
    if first_weight_B is None:
        ones_LB = torch.ones(index_LB.shape, dtype=dtype, device=index_LB.device)
        return RowLabels(index_LB, ones_LB, ones_LB.clone())
    distinct_B = (index_LB[0] != index_LB[1]).to(dtype)
    second_B = (1 - first_weight_B.detach().to(dtype)) * distinct_B
    weight_LB = torch.stack([1 - second_B, second_B])
    return RowLabels(index_LB, weight_LB, torch.stack([torch.ones_like(distinct_B), distinct_B]))


def by_head(rows: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """Cut the last dimension, the rows of all heads one head after another, into those of each head."""
    if num_heads == 1:
        return (rows,)
    return rows.view(*rows.shape[:-1], num_heads, rows.shape[-1] // num_heads).unbind(-2)


def merge_partials(parts: Sequence[Partials], labels: RowLabels, num_labels: int) -> RowSoftmax:
    """Merge the partials of all class ranges, given in the order of their classes, whatever their shifts.

    The same parts in the same order give the same bits on every rank.
    """
    return merge_stacked_partials(
        Partials(*(torch.stack(each) for each in zip(*parts, strict=True))), labels, num_labels
    )


def merge_stacked_partials(parts: Partials, labels: RowLabels, num_labels: int) -> RowSoftmax:
    """`merge_partials` of ranges that are stacked: every member has a first dimension more, that of the ranges."""
    label_logit_LB = parts.label_logit_LB.amax(0)
    has_others_B = parts.sum_others_B.amax(0) > 0
    shift_B = torch.where(has_others_B, parts.shift_B.amax(0), label_logit_LB.amax(0))
    offset_PB = parts.shift_B - shift_B
    scale_PB = offset_PB.exp()
    sum_B = (scale_PB * parts.sum_others_B).sum(0)
    moment_B = (scale_PB * (parts.moment_others_B + offset_PB * parts.sum_others_B)).sum(0)
    log_others_B = sum_B.log()
    offset_LB = label_logit_LB - shift_B
    log_rest_LB = _log_rest(log_others_B, offset_LB, labels)
    max_before_B, max_after_B = _max_around_label(parts, label_logit_LB, labels)
    return RowSoftmax(
        labels=labels,
        num_labels=num_labels,
        label_logit_LB=label_logit_LB,
        shift_B=shift_B,
        log_others_B=log_others_B,
        log_rest_LB=log_rest_LB,
        log_sum_B=torch.logaddexp(log_rest_LB[0], offset_LB[0]),
        inverse_sum_B=_inverse_sum(sum_B, offset_LB, labels),
        moment_others_B=moment_B,
        sum_logits_B=parts.sum_logits_B.sum(0),
        max_before_B=max_before_B,
        max_after_B=max_after_B,
    )


def _log_rest(log_others_B: Tensor, offset_LB: Tensor, labels: RowLabels) -> Tensor:
    """Add to the others' sum, for each label, the term of the row's other label where that is another class."""
    if len(offset_LB) == 1:
        return log_others_B[None].clone()
    other_LB = offset_LB.flip(0).masked_fill(labels.present_LB[1] == 0, -torch.inf)
    return torch.logaddexp(log_others_B.expand_as(other_LB), other_LB)


def _inverse_sum(sum_B: Tensor, offset_LB: Tensor, labels: RowLabels) -> Tensor:
    """1/(Σ of the others + the labels' own terms), scaled by the largest of them so that no lead of a label overflows."""
    lead_B = offset_LB.amax(0).clamp(min=0)
    labels_B = (torch.exp(offset_LB - lead_B) * labels.present_LB).sum(0)
    drop_B = torch.exp(-lead_B)
    return drop_B / (sum_B * drop_B + labels_B)


def _max_around_label(parts: Partials, label_logit_LB: Tensor, labels: RowLabels) -> tuple[Tensor, Tensor]:
    """Largest logit below and above the first label; the partials leave the second label out, here it joins."""
    before_B, after_B = parts.max_before_B.amax(0), parts.max_after_B.amax(0)
    if len(label_logit_LB) == 1:
        return before_B, after_B
    first_B, second_B = labels.index_LB
    before_B = torch.where(second_B < first_B, torch.maximum(before_B, label_logit_LB[1]), before_B)
    after_B = torch.where(second_B > first_B, torch.maximum(after_B, label_logit_LB[1]), after_B)
    return before_B, after_B
