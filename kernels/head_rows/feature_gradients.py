"""Gradients of a loss in each row's features, from what the first stage summed: no class is visited again but the labels'."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.head_rows.head_rows import HeadRows, uniform_share
from rlpheads.kernels.head_rows.row_native import NativeRows, native_rows
from rlpheads.kernels.operators import register_operator
from rlpheads.kernels.rows.partials import ClassRange, Partials, Products, unpacked
from rlpheads.kernels.rows.row_softmax import by_head
from rlpheads.kernels.rows.terms import Coefficients


def local_feature_gradient(
    head: ClassRange,
    labels_LB: Tensor,
    shift_B: Tensor,
    coefficients: Coefficients,
    partials: Partials,
    products: Products,
) -> Tensor:
    """The range's part of each row's dL/dx: (B, D) in the accumulation dtype; `shift_B` is that of the merged rows."""
    offset_B = partials.shift_B - shift_B
    factor_B = offset_B.exp()
    exp_B = coefficients.exp_B
    if coefficients.moment_B is not None:
        exp_B = exp_B + offset_B * coefficients.moment_B
    # Where the range holds no class but the row's labels the sum is 0, and exp_B may be infinite.
    gradient_BD = torch.where(factor_B == 0, 0, factor_B * exp_B)[:, None] * products.exp_weight_BD
    if coefficients.moment_B is not None:
        gradient_BD = torch.addcmul(gradient_BD, (factor_B * coefficients.moment_B)[:, None], products.moment_weight_BD)
    if coefficients.uniform:
        gradient_BD = gradient_BD + coefficients.uniform * products.weight_sum_D
    for number, (index_B, label_B) in enumerate(zip(labels_LB - head.start, coefficients.label_LB, strict=True)):
        if products.label_weight_LBD is not None:
            gradient_BD = torch.addcmul(gradient_BD, label_B[:, None], products.label_weight_LBD[number])
            continue
        if len(head.weight_KD) == 0:  # no label is in the range
            continue
        inside_B = (index_B >= 0) & (index_B < len(head.weight_KD))
        weight_BD = head.weight_KD.index_select(0, index_B.clamp(0, len(head.weight_KD) - 1))
        weight_BD = weight_BD.to(products.operand_dtype or weight_BD.dtype).to(gradient_BD.dtype)
        gradient_BD = torch.addcmul(gradient_BD, torch.where(inside_B, label_B, 0)[:, None], weight_BD)
    return gradient_BD


def gradients_in_features(
    rows: HeadRows,
    packed_FR: Tensor,
    term: str,
    wanted: Sequence[tuple[int, ClassRange, Products]],
    num_heads: int,
) -> list[Tensor]:
    """`local_feature_gradient` of several heads in one call.

    Args:
        rows: of all heads.
        packed_FR: the range's own partials of all rows.
        term: whose gradient: the cross-entropy's, or that of the regulariser that the rows were read for.
        wanted: number, class range and products of each head that is wanted; products whose labels' weights are still to be
            read, of weights that were not rounded.
        num_heads: H.
    """
    factors = rows.coefficients(term)
    ranges, products = [each for _, each, _ in wanted], [each for *_, each in wanted]
    with torch.no_grad():
        found: list[Tensor] = _feature_gradients_op(
            *(factors.exp_B, factors.label_LB, factors.moment_B),
            *(rows.shift_B, packed_FR, rows.labels.index_LB),
            *(term, rows.num_labels, ranges[0].start, num_heads),
            [number for number, *_ in wanted],
            *([each[member] for each in products] for member in range(3)),
            [each.weight_KD for each in ranges],
        )
    return found


class Summed(NamedTuple):
    """What a gradient (n·B, D) of n heads, one after another, is multiplied by, and which sum each head's part is added to."""

    term: int
    """Number of the upstream gradient."""
    first_head: int
    places: tuple[int, ...]
    """Of each head the number of its sum; −1: none."""


def sum_feature_gradients(
    upstreams: Sequence[Tensor], gradients: Sequence[Tensor], parts: Sequence[Summed], num_heads: int
) -> list[Tensor]:
    """Return the sums (B, D) of each row's gradients times its upstream, by their number, in one call.

    Args:
        upstreams: of each term (H·B,).
        gradients: of some heads each.
        parts: what each of them is; no sum is without a part.
        num_heads: H.
    """
    found: list[Tensor] = _sums_op(
        list(upstreams),
        list(gradients),
        [part.term for part in parts],
        [part.first_head for part in parts],
        [len(part.places) for part in parts],
        [place for part in parts for place in part.places],
        num_heads,
    )
    return found


def _compute_feature_gradients(
    exp_R: Tensor,
    label_LR: Tensor,
    moment_R: Tensor | None,
    shift_R: Tensor,
    packed_FR: Tensor,
    index_LR: Tensor,
    term: str,
    num_labels: int,
    start: int,
    num_heads: int,
    numbers: list[int],
    exp_weights: list[Tensor],
    moment_weights: list[Tensor],
    weight_sums: list[Tensor],
    weights: list[Tensor],
) -> list[Tensor]:
    coefficients = Coefficients(exp_R, label_LR, moment_R, uniform_share(term, num_labels))
    native = _native_for(shift_R, weights)
    if native is not None:
        sums = exp_weights, moment_weights, weight_sums, weights
        return native.feature_gradients(coefficients, (shift_R, packed_FR, index_LR), start, num_heads, numbers, sums)
    of_heads = [by_head(each, num_heads) for each in (index_LR, shift_R, packed_FR)]
    of_terms = coefficients.by_head(num_heads)
    gradients = []
    products = map(Products, exp_weights, moment_weights, weight_sums)
    for number, weight_KD, of_head in zip(numbers, weights, products, strict=True):
        labels_LB, shift_B, packed_FB = (each[number] for each in of_heads)
        head, factors = ClassRange(weight_KD, None, start, num_labels), of_terms[number]
        gradients.append(local_feature_gradient(head, labels_LB, shift_B, factors, unpacked(packed_FB), of_head))
    return gradients


def _native_for(numbers: Tensor, weights: Sequence[Tensor]) -> NativeRows | None:
    """The calls in C++ where weights are read as they lie."""
    are_plain = all(each.dtype == torch.float32 and each.is_contiguous() for each in weights)
    return native_rows(numbers) if are_plain else None


def _shape_of_feature_gradients(*arguments: object) -> list[Tensor]:
    exp_weights = arguments[11]
    assert isinstance(exp_weights, (list, tuple))
    return [torch.empty_like(each) for each in exp_weights]


def _compute_sums(
    upstreams: list[Tensor],
    gradients: list[Tensor],
    terms: list[int],
    first_heads: list[int],
    counts: list[int],
    places: list[int],
    num_heads: int,
) -> list[Tensor]:
    of_terms = [by_head(each, num_heads) for each in upstreams]
    factors = [
        of_terms[term][first + number]
        for term, first, count in zip(terms, first_heads, counts, strict=True)
        for number in range(count)
    ]
    of_heads = [
        part_BD
        for gradient_RD, count in zip(gradients, counts, strict=True)
        for part_BD in ((gradient_RD,) if count == 1 else gradient_RD.unflatten(0, (count, -1)).unbind())
    ]
    parts = [part for part in zip(factors, of_heads, places, strict=True) if part[2] >= 0]
    are_floats = all(each.dtype == torch.float32 for each in (*upstreams, *gradients))
    native = native_rows(gradients[0]) if are_floats else None
    if native is not None:
        return native.sum_feature_gradients(parts)
    sums: dict[int, Tensor] = {}
    for factor_B, part_BD, place in parts:
        product_BD = factor_B[:, None] * part_BD
        sums[place] = sums[place] + product_BD if place in sums else product_BD
    return [sums[place] for place in range(len(sums))]


def _shape_of_sums(
    upstreams: list[Tensor],
    gradients: list[Tensor],
    _terms: list[int],
    _first_heads: list[int],
    counts: list[int],
    places: list[int],
    num_heads: int,
) -> list[Tensor]:
    num_rows = upstreams[0].shape[0] // num_heads
    of_parts = [gradient_RD for gradient_RD, count in zip(gradients, counts, strict=True) for _ in range(count)]
    firsts = [of_parts[places.index(place)] for place in range(max(places) + 1)]
    return [each.new_empty(num_rows, each.shape[1]) for each in firsts]


_feature_gradients_op = register_operator(
    "feature_gradients",
    "Tensor exp, Tensor label_gradient, Tensor? moment, Tensor shift, Tensor packed, Tensor labels, str term, "
    "SymInt num_labels, SymInt start, int num_heads, int[] numbers, Tensor[] exp_weights, Tensor[] moment_weights, "
    "Tensor[] weight_sums, Tensor[] weights) -> Tensor[]",
    _compute_feature_gradients,
    _shape_of_feature_gradients,
)
_sums_op = register_operator(
    "sum_feature_gradients",
    "Tensor[] upstreams, Tensor[] gradients, int[] terms, int[] first_heads, int[] counts, int[] places, int num_heads) "
    "-> Tensor[]",
    _compute_sums,
    _shape_of_sums,
)
