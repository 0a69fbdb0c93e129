"""Heads of few labels in plain PyTorch: the logits of all heads written out, each row's dL/dz beside.

Features of different widths are padded with zeros to the widest. What is written out is what
`rlpheads.kernels.rows.reference_stages` computes for one head; here no graph is recorded, and a product more is saved.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlpheads.kernels.rows.partials import LogitGradient, Partials, accumulation_dtype
from rlpheads.kernels.rows.reference_stages import LabelPlaces, RowSums, logit_gradient, sum_rows
from rlpheads.kernels.rows.row_softmax import RowLabels, RowSoftmax, merge_partials
from rlpheads.kernels.rows.terms import TERMS, Coefficients


class WrittenHeads(NamedTuple):
    """Features (B, D), weight (K, D) and bias (K,) or None of each head; B and K are the same for all."""

    features: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor | None]


class WrittenRows(NamedTuple):
    """Values of all heads' rows R, one head after another, and their gradients in the logits under an upstream of 1."""

    cross_entropy_R: Tensor
    regularizer_R: Tensor
    """Any numbers where there is none."""
    bits_R: Tensor
    margin_R: Tensor
    lse_R: Tensor
    hit_R: Tensor
    class_gradient_RK: Tensor | None
    """Of the cross-entropy; None where it is not wanted."""
    feature_gradient_RK: Tensor | None
    """Of the regulariser; None where it is not wanted."""


def product_dtype(features: Sequence[Tensor], weights: Sequence[Tensor]) -> torch.dtype:
    """Type of the products' operands: bfloat16 where all are, on a CPU that is fast at it, or that of the sums."""
    if features[0].dtype != torch.bfloat16 or not multiplies_bfloat16(features[0].device):
        return accumulation_dtype(features[0], weights[0])
    are_all = all(each.dtype == torch.bfloat16 for each in (*features, *weights))
    return torch.bfloat16 if are_all else torch.float32


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it is a CPU with instructions for products of bfloat16; without them float32 is faster."""
    return device.type == "cpu" and _has_bfloat16_instructions()


@cache
def _has_bfloat16_instructions() -> bool:
    # private to torch, and not in every version of it: without them products stay in float32
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def batched_logits(heads: WrittenHeads, dtype: torch.dtype) -> Tensor:
    """Logits of all heads' rows, (R, K), in a dtype; rounded to that of the products before."""
    operands = product_dtype(heads.features, heads.weights)
    weights = [each.mT for each in _in_dtype(heads.weights, operands)]
    logits_HBK = _multiply_each(_in_dtype(heads.features, operands), weights).to(dtype)
    if any(bias_K is not None for bias_K in heads.biases):
        zeros_K = logits_HBK.new_zeros(logits_HBK.shape[-1])
        biases = [zeros_K if bias_K is None else bias_K.to(dtype) for bias_K in heads.biases]
        logits_HBK += torch.stack(biases)[:, None]
    return logits_HBK.flatten(0, 1)


def transposed_products(heads: WrittenHeads, dtype: torch.dtype) -> Tensor:
    """W Xᵀ of each head, (H, K, B), in a dtype: `batched_logits` without biases, as a library is faster at them.

    With fewer rows than classes its threads share the rows of its result better.
    """
    operands = product_dtype(heads.features, heads.weights)
    features = [each.mT for each in _in_dtype(heads.features, operands)]
    return _multiply_each(_in_dtype(heads.weights, operands), features).to(dtype)


def batched_class_gradients(
    features: list[Tensor], gradient_RK: Tensor, upstream_R: Tensor, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of every head's weight, and bias, from that of the logits and the upstream of every row.

    `dtype` is that of the products and of the weights' gradients.
    """
    scaled_HBK = (gradient_RK * upstream_R[:, None]).unflatten(0, (len(features), -1))
    weights_HKD = _multiply_each([each_BK.mT for each_BK in scaled_HBK.to(dtype)], _in_dtype(features, dtype))
    of_weights = [each_KD[:, : x_BD.shape[1]] for each_KD, x_BD in zip(weights_HKD, features, strict=True)]
    return of_weights, list(scaled_HBK.sum(1))


def batched_feature_gradients(
    weights: list[Tensor], gradient_RK: Tensor, upstream_R: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Gradient of every head's features from that of its logits and the upstream of every row.

    `dtype` is that of the products and of the gradients.
    """
    gradient_HBK = (gradient_RK * upstream_R[:, None]).to(dtype).unflatten(0, (len(weights), -1))
    features_HBD = _multiply_each(list(gradient_HBK), _in_dtype(weights, dtype))
    return [each_BD[:, : weight_KD.shape[1]] for each_BD, weight_KD in zip(features_HBD, weights, strict=True)]


def _multiply_each(lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> Tensor:
    """The product of each two matrices, stacked, by products that need no copies."""
    width = max(right.shape[1] for right in rights)
    products = lefts[0].new_empty(len(lefts), len(lefts[0]), width)
    for product, left, right in zip(products, lefts, rights, strict=True):
        torch.mm(left, right, out=product if right.shape[1] == width else product[:, : right.shape[1]])
    return products


def _in_dtype(matrices: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The matrices in a dtype; those that are one tensor stay one."""
    cast: dict[int, Tensor] = {}
    return [cast.setdefault(id(matrix), matrix if matrix.dtype == dtype else matrix.to(dtype)) for matrix in matrices]


def written_rows(logits_RK: Tensor, labels: RowLabels, kind: str | None, wanted: tuple[bool, bool]) -> WrittenRows:
    """Every value of the rows, and the gradients that are wanted: of the cross-entropy, of the regulariser `kind`."""
    sums, places = sums_over_range(logits_RK, labels.index_LB, 0)
    rows = merge_partials([sums.partials], labels, logits_RK.shape[1])
    # The shift of the merged rows is that of the sums, unless a row has no class but its labels: then all sums are 0.
    offset_R = torch.zeros_like(rows.shift_B)
    return _write(
        rows, RangeOfRows(sums.exp_BC, sums.moment_BC, sums.partials.sum_others_B, offset_R), places, kind, wanted
    )


def sums_over_range(logits_RK: Tensor, index_LR: Tensor, start: int) -> tuple[RowSums, LabelPlaces]:
    """Statistics of rows over a range of classes from label `start` on, whose logits these are."""
    places = _places(logits_RK, index_LR, start)
    # A first column that is no class, as `reference_stages` has it.
    return sum_rows(F.pad(logits_RK, (1, 0), value=-torch.inf), places), places


class RangeOfRows(NamedTuple):
    """What gradients in a range's logits are made from; C counts its classes and a first column that is none."""

    exp_RC: Tensor
    """e^{z − s} with a shift s of the range's own, 0 at the labels."""
    moment_RC: Tensor
    """e^{z − s}·(z − s); read for `entropy` only."""
    sum_others_R: Tensor
    """Σ of the first."""
    offset_R: Tensor
    """s less the shift of the rows merged over all ranges."""


def merged_rows(
    rows: RowSoftmax,
    exp_RK: Tensor,
    moment_RK: Tensor,
    own: Partials,
    start: int,
    kind: str | None,
    wanted: tuple[bool, bool],
) -> WrittenRows:
    """`written_rows` where a range's sums have been merged with those of the others; gradients are those of its classes.

    `exp_RK` and `moment_RK` are what `sums_over_range` returned, without the first column; `own` its partials.
    """
    in_range = RangeOfRows(
        F.pad(exp_RK, (1, 0)), F.pad(moment_RK, (1, 0)), own.sum_others_B, own.shift_B - rows.shift_B
    )
    return _write(rows, in_range, _places(exp_RK, rows.labels.index_LB, start), kind, wanted)


def _places(of_range_RK: Tensor, index_LR: Tensor, start: int) -> LabelPlaces:
    position_LR = index_LR - start + 1
    return LabelPlaces(position_LR, (position_LR > 0) & (position_LR <= of_range_RK.shape[1]))


def _write(
    rows: RowSoftmax, in_range: RangeOfRows, places: LabelPlaces, kind: str | None, wanted: tuple[bool, bool]
) -> WrittenRows:
    cross_entropy_R = TERMS["cross_entropy"].value_B(rows)
    return WrittenRows(
        cross_entropy_R=cross_entropy_R,
        regularizer_R=torch.zeros_like(cross_entropy_R) if kind is None else TERMS[kind].value_B(rows),
        bits_R=rows.bits,
        margin_R=rows.margin,
        lse_R=rows.lse,
        hit_R=rows.hit,
        class_gradient_RK=_gradient("cross_entropy", in_range, rows, places) if wanted[0] else None,
        feature_gradient_RK=_gradient(kind, in_range, rows, places) if wanted[1] and kind is not None else None,
    )


def _gradient(kind: str, in_range: RangeOfRows, rows: RowSoftmax, places: LabelPlaces) -> Tensor:
    """dL/dz of the range's classes, (R, K)."""
    factors: Coefficients = TERMS[kind].coefficients(rows)
    has_others_R, scale_R = in_range.sum_others_R > 0, in_range.offset_R.exp()
    exp_R = factors.exp_B
    if factors.moment_B is not None:
        exp_R = exp_R + in_range.offset_R * factors.moment_B
    of_exp_R = torch.where(has_others_R, scale_R * exp_R, 0)
    label_LR = torch.where(places.inside_LB, factors.label_LB, 0)
    gradient_RC = logit_gradient(in_range.exp_RC, LogitGradient(of_exp_R[None], label_LR), places)
    if factors.moment_B is not None:
        of_moment_R = torch.where(has_others_R, scale_R * factors.moment_B, 0)
        gradient_RC = gradient_RC + in_range.moment_RC * of_moment_R[:, None]
    if factors.uniform:
        gradient_RC = gradient_RC + factors.uniform
    return gradient_RC[:, 1:].contiguous()
