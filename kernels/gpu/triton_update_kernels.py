"""The Triton kernels of an optimizer's step that is taken where the gradient of a head's weight is made.

Conventions are those of `rlpheads.kernels.gpu.triton_kernels`; a launch serves one head. The gradient of a tile of classes and
features is in registers alone: a product of exponentials and scaled features, the labels' own terms, and then the optimizer's
arithmetic on what is read of the weight and its states, which are written where they were.
"""

import triton
import triton.language as tl

from rlpheads.kernels.gpu.triton_kernels import accumulate_dot, round_to_nearest


@triton.jit
def share_after(share, number):
    """1 − (1 − share)^number, in which no digits of a small share cancel: those of m and n steps make a + b − a·b."""
    total = share * 0.0
    while number > 0:
        total = tl.where(number % 2 == 1, total + share * (1.0 - total), total)
        share = share * (2.0 - share)
        number = number // 2
    return total


@triton.jit
def count_step_kernel(step, rates, left_out, lr, first_share, second_share):
    """Count a step of Adam's, unless it is left out, and write what depends on the count n: lr/(1 − β1^n), 1/√(1 − β2^n)."""
    number = tl.load(step) + tl.where(tl.load(left_out).to(tl.int32) == 0, 1.0, 0.0)
    tl.store(step, number)
    steps = number.to(tl.int32)
    tl.store(rates, lr / share_after(first_share, steps))
    tl.store(rates + 1, 1.0 / tl.sqrt(share_after(second_share, steps)))


@triton.jit
def gradient_tile(
    exps,
    scaled,
    factor,
    features,
    labels,
    order,
    label_gradient,
    first_class,
    first_feature,
    num_rows,
    num_kept_rows,
    num_places,
    num_classes,
    num_features,
    start,
    stride_x,
    stride_e,
    HAS_FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    FEATURES: tl.constexpr,
    LABELS: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """The weight's gradient of a tile: Eᵀ(v∘x) and the labels' terms, in float32; in the ragged tails it means nothing.

    `labels` are in ascending order, and `order` says which of the L·B labels each was.
    """
    columns_N = first_class + tl.arange(0, CLASSES)
    offset_D = first_feature + tl.arange(0, FEATURES)
    in_classes_N, in_features_D = columns_N < num_classes, offset_D < num_features
    total_ND = tl.zeros((CLASSES, FEATURES), tl.float32)
    for first in range(0, num_kept_rows, ROWS):
        rows_R = first + tl.arange(0, ROWS)
        in_rows_R = rows_R < num_kept_rows
        place_RN = exps + rows_R.to(tl.int64)[:, None] * stride_e + columns_N[None, :]
        exp_RN = tl.load(place_RN, mask=in_rows_R[:, None] & in_classes_N[None, :], other=0.0)
        place_RD = scaled + rows_R.to(tl.int64)[:, None] * num_features + offset_D[None, :]
        scaled_RD = tl.load(place_RD, mask=in_rows_R[:, None] & in_features_D[None, :], other=0.0)
        total_ND = accumulate_dot(tl.trans(exp_RN), scaled_RD, total_ND, PRECISION, EMULATED)
    if HAS_FACTOR:
        total_ND *= tl.load(factor)
    begin, end = 0, 0
    for first in range(0, num_places, LABELS):
        places_L = first + tl.arange(0, LABELS)
        label_L = tl.load(labels + places_L, mask=places_L < num_places, other=0) - (start + first_class)
        begin += tl.sum(((places_L < num_places) & (label_L < 0)).to(tl.int32), 0)
        end += tl.sum(((places_L < num_places) & (label_L < CLASSES)).to(tl.int32), 0)
    for place in range(begin, end):
        label = tl.load(labels + place) - start
        which = tl.load(order + place)
        x_D = tl.load(features + (which % num_rows) * stride_x + offset_D, mask=in_features_D, other=0.0)
        term_D = x_D.to(tl.float32) * tl.load(label_gradient + which)
        total_ND += tl.where((columns_N == label)[:, None], term_D[None, :], 0.0)
    return total_ND


@triton.jit
def adam_step(
    gradient_ND,
    weight_ND,
    first,
    second,
    corner,
    place_ND,
    inside_ND,
    rates,
    first_share,
    second_decay,
    second_share,
    keep,
    eps,
):
    """Adam's new weight; its averages are renewed in place."""
    rate, inverse_root = tl.load(rates), tl.load(rates + 1)
    first_ND = tl.load(first + corner + place_ND, mask=inside_ND, other=0.0)
    first_ND += first_share * (gradient_ND - first_ND)
    tl.store(first + corner + place_ND, first_ND, mask=inside_ND)
    second_ND = tl.load(second + corner + place_ND, mask=inside_ND, other=0.0)
    second_ND = second_decay * second_ND + second_share * gradient_ND * gradient_ND
    tl.store(second + corner + place_ND, second_ND, mask=inside_ND)
    return weight_ND * keep - rate * first_ND / (tl.sqrt(second_ND) * inverse_root + eps)


@triton.jit
def descent_step(
    gradient_ND,
    weight_ND,
    first,
    corner,
    place_ND,
    inside_ND,
    rate,
    momentum,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
):
    """The new weight of gradient descent, with or without momentum, whose buffer is renewed in place."""
    if MOMENTUM:
        first_ND = momentum * tl.load(first + corner + place_ND, mask=inside_ND, other=0.0) + gradient_ND
        tl.store(first + corner + place_ND, first_ND, mask=inside_ND)
        gradient_ND = gradient_ND + momentum * first_ND if NESTEROV else first_ND
    return weight_ND - rate * gradient_ND


@triton.jit
def update_tiles_kernel(
    weight,
    first,
    second,
    copy,
    squared,
    exps,
    scaled,
    factor,
    features,
    labels,
    order,
    label_gradient,
    rates,
    left_out,
    number_rate,
    number_keep,
    number_l2,
    number_eps,
    number_first_decay,
    number_first_share,
    number_second_decay,
    number_second_share,
    num_rows,
    num_kept_rows,
    num_places,
    num_classes,
    num_features,
    start,
    stride_x,
    stride_e,
    STEP: tl.constexpr,
    ADAM: tl.constexpr,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    COPY: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    FEATURES: tl.constexpr,
    LABELS: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """The gradient of one tile of a head's weight: the sum of its squares, and with STEP the optimizer's step, unless left out.

    A tile's features come before its classes in the grid, so that the exponentials are read from memory once. COPY: the weight
    rounded to the products' dtype is written beside it, for the next pass over the logits.
    """
    feature_tiles = tl.cdiv(num_features, FEATURES)
    first_class = tl.program_id(0) // feature_tiles * CLASSES
    first_feature = tl.program_id(0) % feature_tiles * FEATURES
    gradient_ND = gradient_tile(
        *(exps, scaled, factor, features, labels, order, label_gradient, first_class, first_feature),
        *(num_rows, num_kept_rows, num_places, num_classes, num_features, start, stride_x, stride_e),
        *(HAS_FACTOR, ROWS, CLASSES, FEATURES, LABELS, PRECISION, EMULATED),
    )
    classes_N = first_class + tl.arange(0, CLASSES)
    offset_D = first_feature + tl.arange(0, FEATURES)
    inside_ND = (classes_N < num_classes)[:, None] & (offset_D < num_features)[None, :]
    known_ND = tl.where(inside_ND, gradient_ND, 0.0)
    tl.store(squared + tl.program_id(0), tl.sum(tl.sum(known_ND * known_ND, 1), 0))
    if STEP:  # noqa: SIM102 - the one is settled when it is compiled, the other on the device
        if tl.load(left_out).to(tl.int32) == 0:
            corner = first_class.to(tl.int64) * num_features + first_feature
            place_ND = (tl.arange(0, CLASSES) * num_features)[:, None] + tl.arange(0, FEATURES)[None, :]
            weight_ND = tl.load(weight + corner + place_ND, mask=inside_ND, other=0.0)
            gradient_ND += number_l2 * weight_ND
            if ADAM:
                weight_ND = adam_step(
                    *(gradient_ND, weight_ND, first, second, corner, place_ND, inside_ND, rates),
                    *(number_first_share, number_second_decay, number_second_share, number_keep, number_eps),
                )
            else:
                weight_ND = descent_step(
                    *(gradient_ND, weight_ND, first, corner, place_ND, inside_ND, number_rate, number_first_decay),
                    *(MOMENTUM, NESTEROV),
                )
            tl.store(weight + corner + place_ND, weight_ND, mask=inside_ND)
            if COPY:
                rounded_ND = round_to_nearest(weight_ND, copy.dtype.element_ty, EMULATED)
                tl.store(copy + corner + place_ND, rounded_ND, mask=inside_ND)
