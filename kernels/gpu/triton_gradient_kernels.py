"""The Triton kernels of the gradients, beside the library's matrix products: label terms, biases, scaled features.

Conventions are those of `rlpheads.kernels.gpu.triton_kernels`. Rows, classes and gradients of several heads lie one head after
another; of several labels of a row, the second ones of all heads' rows follow the first ones of all.
"""

import triton
import triton.language as tl

from rlpheads.kernels.gpu.triton_kernels import round_to_nearest


@triton.jit
def scale_features_kernel(
    scaled,
    features,
    scale,
    factor,
    base,
    num_rows,
    num_kept_rows,
    num_features,
    rows_apart,
    stride_x,
    HAS_FACTOR: tl.constexpr,
    HAS_BASE: tl.constexpr,
    OPERAND: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """v∘x of a block of rows, rounded to an operand of V = Eᵀ(v∘x); a head each, and divided by its factor if it has one.

    With HAS_BASE a program takes all rows of its features: Σ base·v·x, the same for every class, meets the two rows of ones, in
    two parts that together have twice the digits, and zeros fill the buffer.
    """
    head = tl.program_id(2)
    offset_D = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    in_features_1D = (offset_D < num_features)[None, :]
    common_D = tl.zeros((FEATURES,), tl.float32)
    inverse = 1.0
    if HAS_FACTOR:
        inverse = 1.0 / tl.load(factor + head)
    own = (head * num_kept_rows).to(tl.int64)
    last = num_rows if HAS_BASE else tl.minimum((tl.program_id(1) + 1) * ROWS, num_rows)
    for first in range(tl.program_id(1) * ROWS, last, ROWS):
        rows_M = first + tl.arange(0, ROWS)
        in_rows_M = rows_M < num_rows
        inside_MD = in_rows_M[:, None] & in_features_1D
        place_MD = (head * rows_apart + rows_M).to(tl.int64)[:, None] * stride_x + offset_D[None, :]
        x_MD = tl.load(features + place_MD, mask=inside_MD, other=0.0).to(tl.float32)
        scale_M = tl.load(scale + head * num_rows + rows_M, mask=in_rows_M, other=0.0) * inverse
        scaled_MD = x_MD * scale_M[:, None]
        if HAS_BASE:
            base_M = tl.load(base + head * num_rows + rows_M, mask=in_rows_M, other=0.0)
            common_D += tl.sum(scaled_MD * base_M[:, None], 0)
        rounded_MD = round_to_nearest(scaled_MD, scaled.dtype.element_ty, EMULATED)
        tl.store(scaled + (own + rows_M)[:, None] * num_features + offset_D[None, :], rounded_MD, mask=inside_MD)
    if HAS_BASE:
        in_features_D = offset_D < num_features
        high_D = round_to_nearest(common_D, OPERAND, EMULATED).to(tl.float32)
        low_D = round_to_nearest(common_D - high_D, scaled.dtype.element_ty, EMULATED)
        below_D = scaled + (own + num_rows) * num_features + offset_D
        tl.store(below_D, high_D.to(scaled.dtype.element_ty), mask=in_features_D)
        tl.store(below_D + num_features, low_D, mask=in_features_D)
        for row in range(num_rows + 2, num_kept_rows):
            nothing_D = tl.zeros((FEATURES,), scaled.dtype.element_ty)
            tl.store(scaled + (own + row) * num_features + offset_D, nothing_D, mask=in_features_D)


@triton.jit
def add_label_rows_kernel(
    gradient,
    sums,
    features,
    labels,
    order,
    label_gradient,
    num_rows,
    num_places,
    num_classes,
    num_features,
    start,
    rows_apart,
    stride_g,
    stride_x,
    SUMS_GIVEN: tl.constexpr,
    LABELS: tl.constexpr,
    FEATURES: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Add the labels' own terms to the rows of the weight's gradient in float32, and round each row once.

    `labels` are each head's in ascending order, and `order` says which of its L·B labels each was. The program of the first of
    several equal labels adds the terms of all, in their order; the others return.
    """
    place, head = tl.program_id(0), tl.program_id(2)
    labels += head * num_places
    label = tl.load(labels + place)
    offset_D = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    in_features_D = offset_D < num_features
    earlier = tl.load(labels + place - 1, mask=place > 0, other=-1)
    if (label < start) | (label >= start + num_classes) | (label == earlier):
        return
    target_D = gradient + (head * num_classes + (label - start)).to(tl.int64) * stride_g + offset_D
    if SUMS_GIVEN:
        at_D = (head * num_places + place).to(tl.int64) * num_features + offset_D
        total_D = tl.load(sums + at_D, mask=in_features_D, other=0.0)
    else:
        total_D = tl.load(target_D, mask=in_features_D, other=0.0)
    first = place
    while first < num_places:
        places_L = first + tl.arange(0, LABELS)
        is_same_L = tl.load(labels + places_L, mask=places_L < num_places, other=-1) == label
        which_L = tl.load(order + head * num_places + places_L, mask=is_same_L, other=0)
        rows_L = which_L % num_rows
        of_labels_L = which_L // num_rows * (num_rows * tl.num_programs(2)) + head * num_rows + rows_L
        weight_L = tl.load(label_gradient + of_labels_L, mask=is_same_L, other=0.0)
        inside_LD = is_same_L[:, None] & in_features_D[None, :]
        x_L1 = features + (head * rows_apart + rows_L).to(tl.int64)[:, None] * stride_x
        x_LD = tl.load(x_L1 + offset_D[None, :], mask=inside_LD, other=0.0)
        total_D += tl.sum(x_LD.to(tl.float32) * weight_L[:, None], 0)
        # Equal labels stand side by side: a block that is not full of them is the last.
        first = tl.where(tl.min(is_same_L.to(tl.int32), 0) > 0, first + LABELS, num_places)
    tl.store(target_D, round_to_nearest(total_D, gradient.dtype.element_ty, EMULATED), mask=in_features_D)


@triton.jit
def class_sums_kernel(
    gradient,
    exps,
    base,
    scale,
    labels,
    label_gradient,
    num_rows,
    num_kept_rows,
    num_places,
    num_classes,
    start,
    stride_e,
    HAS_BASE: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Gradient of a head's bias: each class's scaled exponentials and label terms, summed over the rows."""
    head = tl.program_id(1)
    columns_N = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    in_classes_N = columns_N < num_classes
    total_N = tl.zeros((CLASSES,), tl.float32)
    for first in range(0, num_rows, ROWS):
        rows_M = first + tl.arange(0, ROWS)
        in_rows_M = rows_M < num_rows
        place_MN = exps + (head * num_kept_rows + rows_M).to(tl.int64)[:, None] * stride_e + columns_N[None, :]
        exp_MN = tl.load(place_MN, mask=in_rows_M[:, None] & in_classes_N[None, :], other=0.0).to(tl.float32)
        if HAS_BASE:
            exp_MN += tl.load(base + head * num_rows + rows_M, mask=in_rows_M, other=0.0)[:, None]
        scale_M = tl.load(scale + head * num_rows + rows_M, mask=in_rows_M, other=0.0)
        total_N += tl.sum(exp_MN * scale_M[:, None], 0)
    for first in range(0, num_places, ROWS):
        places_L = first + tl.arange(0, ROWS)
        inside_L = places_L < num_places
        at_L = places_L // num_rows * (num_rows * tl.num_programs(1)) + head * num_rows + places_L % num_rows
        label_L = tl.load(labels + at_L, mask=inside_L, other=-1) - start
        weight_L = tl.load(label_gradient + at_L, mask=inside_L, other=0.0)
        is_own_LN = inside_L[:, None] & (label_L[:, None] == columns_N[None, :])
        total_N += tl.sum(tl.where(is_own_LN, weight_L[:, None], 0.0), 0)
    rounded_N = round_to_nearest(total_N, gradient.dtype.element_ty, EMULATED)
    tl.store(gradient + head * num_classes + columns_N, rounded_N, mask=in_classes_N)


@triton.jit
def feature_gradients_kernel(
    gradient,
    exp_weight,
    moment_weight,
    weight_sum,
    weight,
    labels,
    exp_factor,
    moment_factor,
    label_factor,
    num_rows,
    num_classes,
    num_labels,
    num_features,
    start,
    stride_w,
    PAIR: tl.constexpr,
    MOMENT: tl.constexpr,
    UNIFORM: tl.constexpr,
    OPERAND: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """dL/dx of a head's rows: the sums over its classes times each row's factors, and the labels' own rows of the weight.

    The weight holds `num_classes` of the `num_labels` classes, from `start` on. UNIFORM: dL/dz of every class is 1/K less.
    """
    head = tl.program_id(2)
    rows_M = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    offset_D = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    in_rows_M = rows_M < num_rows
    inside_MD = in_rows_M[:, None] & (offset_D < num_features)[None, :]
    places_M = head * num_rows + rows_M
    out_MD = places_M.to(tl.int64)[:, None] * num_features + offset_D[None, :]
    factor_M = tl.load(exp_factor + places_M, mask=in_rows_M, other=0.0)
    total_MD = tl.load(exp_weight + out_MD, mask=inside_MD, other=0.0) * factor_M[:, None]
    if MOMENT:
        moment_M = tl.load(moment_factor + places_M, mask=in_rows_M, other=0.0)
        total_MD += tl.load(moment_weight + out_MD, mask=inside_MD, other=0.0) * moment_M[:, None]
    if UNIFORM:
        sum_D = tl.load(weight_sum + head * num_features + offset_D, mask=offset_D < num_features, other=0.0)
        total_MD -= (sum_D / num_labels)[None, :]
    for number in tl.static_range(2 if PAIR else 1):
        at_M = number * num_rows * tl.num_programs(2) + places_M
        label_M = tl.load(labels + at_M, mask=in_rows_M, other=-1) - start
        is_class_M = in_rows_M & (label_M >= 0) & (label_M < num_classes)
        own_M1 = weight + (head * num_classes + tl.where(is_class_M, label_M, 0)).to(tl.int64)[:, None] * stride_w
        own_MD = tl.load(own_M1 + offset_D[None, :], mask=is_class_M[:, None] & inside_MD, other=0.0)
        # Rounded as the sums' operands were: near chance the two cancel.
        own_MD = round_to_nearest(own_MD.to(tl.float32), OPERAND, EMULATED).to(tl.float32)
        label_factor_M = tl.load(label_factor + at_M, mask=is_class_M, other=0.0)
        total_MD += own_MD * label_factor_M[:, None]
    tl.store(gradient + out_MD, total_MD, mask=inside_MD)


@triton.jit
def weigh_features_kernel(
    out,
    gradient,
    upstream,
    num_rows,
    num_heads,
    num_features,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Rows' upstream gradients times their dL/dx, rounded to the features' dtype; summed over heads that read the same ones.

    Features are those of the third axis of the grid, each read by `num_heads` heads one after another.
    """
    reader = tl.program_id(2)
    rows_M = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    offset_D = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    in_rows_M = rows_M < num_rows
    inside_MD = in_rows_M[:, None] & (offset_D < num_features)[None, :]
    total_MD = tl.zeros((ROWS, FEATURES), tl.float32)
    for number in range(num_heads):
        places_M = (reader * num_heads + number) * num_rows + rows_M
        upstream_M = tl.load(upstream + places_M, mask=in_rows_M, other=0.0)
        at_MD = places_M.to(tl.int64)[:, None] * num_features + offset_D[None, :]
        total_MD += tl.load(gradient + at_MD, mask=inside_MD, other=0.0) * upstream_M[:, None]
    out_MD = out + (reader * num_rows + rows_M).to(tl.int64)[:, None] * num_features + offset_D[None, :]
    tl.store(out_MD, round_to_nearest(total_MD, out.dtype.element_ty, EMULATED), mask=inside_MD)
