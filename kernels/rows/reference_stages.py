"""The two local stages in plain PyTorch: a class range's logits written out, on any device and in any float dtype.

They serve ranges of few classes or of none, and say what the tiled and fused implementations compute. In every matrix of
logits here column 0 is no class: its logit is −∞, its weight 0, and labels outside the range point to it. Nothing
branches on the number of classes, so that an empty range needs no case of its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.rows import reference
from rlpheads.kernels.rows.partials import (
    NO_CLASS_SHIFT,
    ClassRange,
    Exponentials,
    LogitGradient,
    Needs,
    Partials,
    Products,
)


class LabelPlaces(NamedTuple):
    """Where the labels of each row lie among the columns of its logits."""

    position_LB: Tensor
    """int64 column that the label has, or would have: below 1 or beyond the last where it lies outside."""
    inside_LB: Tensor
    """Whether the label is one of the columns, bool."""

    @property
    def column(self) -> Tensor:
        """The label's column, 0 where it lies outside."""
        return torch.where(self.inside_LB, self.position_LB, 0)


class RowSums(NamedTuple):
    """Each row's exponentials and what they add up to; C counts the columns."""

    partials: Partials
    exp_BC: Tensor
    """e^{z − s}, 0 at the labels and where there is no class."""
    moment_BC: Tensor
    """e^{z − s}·(z − s) of the same columns."""


def local_partials(
    features_BD: Tensor, head: ClassRange, labels_LB: Tensor, needs: Needs
) -> tuple[Partials, Products, Exponentials]:
    """First stage: reduce a class range to `Partials`, and keep what its own gradients need."""
    logits_BK = reference.logits(features_BD, head.weight_KD, head.bias_K)
    places = _label_places(head, labels_LB)
    sums = sum_rows(with_no_class(logits_BK.T, -torch.inf).T, places)
    weight_CD = with_no_class(head.weight_KD.to(logits_BK.dtype), 0.0)
    products = NO_PRODUCTS
    if needs.feature_gradient:
        label_weight_LBD = weight_CD[places.column]
        products = Products(
            sums.exp_BC @ weight_CD, sums.moment_BC @ weight_CD, weight_CD.sum(0), label_weight_LBD=label_weight_LBD
        )
    return sums.partials, products, Exponentials(sums.exp_BC, sums.partials.shift_B[None])


def local_class_gradients(
    features_BD: Tensor,
    head: ClassRange,
    labels_LB: Tensor,
    exponentials: Exponentials,
    gradient: LogitGradient,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Last stage: gradients of the range's weight and bias, each None unless wanted."""
    gradient_BC = logit_gradient(exponentials.flat, gradient, _label_places(head, labels_LB))
    weight_gradient_KD = bias_gradient_K = None
    if wanted[0]:
        weight_gradient_KD = (gradient_BC.T @ features_BD.to(gradient_BC.dtype))[1:].to(head.weight_KD.dtype)
    if wanted[1]:
        assert head.bias_K is not None
        bias_gradient_K = gradient_BC.sum(0)[1:].to(head.bias_K.dtype)
    return weight_gradient_KD, bias_gradient_K


def sum_rows(logits_BC: Tensor, places: LabelPlaces, is_class_BC: Tensor | None = None) -> RowSums:
    """Softmax statistics of rows of logits, −∞ where there is no class and in the whole of column 0.

    `is_class_BC`, bool, says where there is one: a class may have the logit −∞, too; None: everywhere but in column 0.
    """
    column_LB = places.column
    others_BC = logits_BC.scatter(1, column_LB.T, -torch.inf)
    top_B = others_BC.amax(1)
    shift_B = torch.where(top_B > -torch.inf, top_B, NO_CLASS_SHIFT)
    offset_BC = others_BC - shift_B[:, None]
    exp_BC = offset_BC.exp()
    moment_BC = exp_BC * torch.where(exp_BC > 0, offset_BC, 0.0)
    columns_C = torch.arange(logits_BC.shape[1], device=logits_BC.device)
    first_B1 = places.position_LB[0, :, None]
    partials = Partials(
        shift_B=shift_B,
        sum_others_B=exp_BC.sum(1),
        moment_others_B=moment_BC.sum(1),
        sum_logits_B=(logits_BC[:, 1:] if is_class_BC is None else torch.where(is_class_BC, logits_BC, 0.0)).sum(1),
        label_logit_LB=logits_BC.gather(1, column_LB.T).T,
        max_before_B=others_BC.masked_fill(columns_C >= first_B1, -torch.inf).amax(1),
        max_after_B=others_BC.masked_fill(columns_C <= first_B1, -torch.inf).amax(1),
    )
    return RowSums(partials, exp_BC, moment_BC)


def logit_gradient(exp_BC: Tensor, gradient: LogitGradient, places: LabelPlaces) -> Tensor:
    """dL/dz of every column, (B, C); column 0, which is no class, gathers those of labels outside."""
    scale_B1 = gradient.scale_CB[0, :, None]
    return (exp_BC * scale_B1).scatter_add(1, places.column.T, gradient.label_LB.T)


def with_no_class(rows_KX: Tensor, fill: float) -> Tensor:
    """Put a row that stands for no class before those of the classes."""
    no_class_1X = torch.full((1, rows_KX.shape[1]), fill, dtype=rows_KX.dtype, device=rows_KX.device)
    return torch.cat([no_class_1X, rows_KX])


NO_PRODUCTS = Products(*(torch.empty(0),) * 3)
"""For a head whose features need no gradient."""


def _label_places(head: ClassRange, labels_LB: Tensor) -> LabelPlaces:
    position_LB = labels_LB - head.start + 1
    return LabelPlaces(position_LB, (position_LB > 0) & (position_LB <= head.weight_KD.shape[0]))
