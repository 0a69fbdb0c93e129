"""The Triton kernels of the rows: from each row's sums over the classes to every loss and every gradient's coefficients.

What `rlpheads.kernels.rows.row_softmax.merge_partials` and `rlpheads.kernels.rows.terms` compute, for whole heads and in one
launch for the rows of all of them; the formulas are explained there. First and second label of a row are `0` and `1` in the
names; without PAIR there is no second.
"""

import triton
import triton.language as tl

from rlpheads.kernels.gpu.triton_kernels import LN_2, LOG2_E
from rlpheads.kernels.rows import partials

NO_CLASS_SHIFT = tl.constexpr(partials.NO_CLASS_SHIFT)

KINDS = ("unlikelihood", "uniform", "reversal", "entropy")
"""The regularizers, by their number in the kernels."""
UNLIKELIHOOD, UNIFORM, REVERSAL, ENTROPY = (tl.constexpr(number) for number in range(4))
NO_KIND = tl.constexpr(-1)


@triton.jit
def exponential(x):
    """e^x."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def log1p_of_exp(x):
    """log(1 + e^x) for x ≤ 0; the quotient undoes the rounding of 1 + e^x."""
    small = exponential(x)
    sum_ = 1.0 + small
    return tl.where(sum_ == 1.0, small, tl.log(sum_) * (small / tl.where(sum_ == 1.0, 1.0, sum_ - 1.0)))


@triton.jit
def log_sigmoid(x):
    """Log of the logistic function."""
    return tl.minimum(x, 0.0) - log1p_of_exp(-tl.abs(x))


@triton.jit
def sigmoid(x):
    """The logistic function, without overflow."""
    small = exponential(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def finite(x):
    """−∞ as a finite number, so that its product with a probability of 0 is 0."""
    return tl.maximum(x, NO_CLASS_SHIFT)


@triton.jit
def log_add_exp(a, b):
    """log(e^a + e^b); of two −∞ it is −∞."""
    return tl.maximum(a, b) + tl.where(a == b, LN_2, log1p_of_exp(-tl.abs(a - b)))


@triton.jit
def softmax_of_rows(shift, sum_, moment, z0, z1, present1, PAIR: tl.constexpr):
    """Shift, factor of the sums, log Σ of the others, the two log Σ of the rest, log Σ, 1/Σ and moment of each row."""
    top = tl.maximum(z0, z1) if PAIR else z0
    row_shift = tl.where(sum_ > 0, shift, top)
    offset = shift - row_shift
    factor = exponential(offset)
    others = factor * sum_
    row_moment = factor * (moment + offset * sum_)
    o0, o1 = z0 - row_shift, z1 - row_shift
    log_others = tl.log(others)
    rest0 = log_others
    rest1 = log_others
    lead = tl.maximum(o0, 0.0)
    if PAIR:
        rest0 = tl.where(present1, log_add_exp(log_others, o1), log_others)
        rest1 = tl.where(present1, log_add_exp(log_others, o0), log_others)
        lead = tl.maximum(lead, o1)
    of_labels = exponential(o0 - lead)
    if PAIR:
        of_labels += tl.where(present1, exponential(o1 - lead), 0.0)
    drop = exponential(-lead)
    inverse = drop / (others * drop + of_labels)
    return row_shift, offset, factor, log_others, rest0, rest1, log_add_exp(rest0, o0), inverse, row_moment


@triton.jit
def cross_entropy_of_label(odds, weight):
    """dL/dz at a label: p − w, where w > ½ as (1 − w) − (1 − p), which does not cancel as p → 1."""
    return tl.where(weight > 0.5, (1.0 - weight) - sigmoid(-odds), sigmoid(odds) - weight)


@triton.jit
def terms_of_rows(
    shift,
    sum_,
    moment,
    sum_logits,
    z0,
    z1,
    present1,
    w0,
    w1,
    num_labels,
    PAIR: tl.constexpr,
    KIND: tl.constexpr,
):
    """All values and coefficients of rows that hold all classes.

    Returns the rows' shift, 1/Σ, log p of the first label, log Σ e^z; of the cross-entropy its value and its two labels' dL/dz;
    of the regularizer its value, its factors of exponentials and moments, as these were given, and its two labels' dL/dz.
    """
    row_shift, offset, factor, log_others, rest0, rest1, log_sum, inverse, row_moment = softmax_of_rows(
        shift, sum_, moment, z0, z1, present1, PAIR
    )
    o0, o1 = z0 - row_shift, z1 - row_shift
    odds0, odds1 = o0 - rest0, o1 - rest1
    log_p0, log_p1 = log_sigmoid(odds0), log_sigmoid(odds1)
    loss = -w0 * log_p0
    label0 = cross_entropy_of_label(odds0, w0)
    label1 = tl.zeros_like(label0)
    if PAIR:
        loss += -w1 * log_p1
        label1 = tl.where(present1, cross_entropy_of_label(odds1, w1), 0.0)
    value, moment_factor = tl.zeros_like(loss), tl.zeros_like(loss)
    exp_factor, own0, own1 = inverse, label0, label1
    if KIND == REVERSAL:
        value, exp_factor, own0, own1 = -loss, -inverse, -label0, -label1
    if KIND == UNLIKELIHOOD:
        value = -w0 * log_sigmoid(-odds0)
        own0 = w0 * sigmoid(odds0)
        exp_factor = -own0 * exponential(-rest0)
        if PAIR:
            value += -w1 * log_sigmoid(-odds1)
            own1 = w1 * sigmoid(odds1)
            exp_factor -= own1 * exponential(-rest1)
            share0 = own0
            own0 -= tl.where(present1, own1 * exponential(o0 - rest1), 0.0)
            own1 -= tl.where(present1, share0 * exponential(o1 - rest0), 0.0)
    if KIND == UNIFORM:
        value = log_sum + (row_shift - sum_logits / num_labels)
        own0 = sigmoid(odds0)
        own1 = tl.where(present1, sigmoid(odds1), 0.0)
    if KIND == ENTROPY:
        p0, p1 = sigmoid(odds0), tl.where(present1, sigmoid(odds1), 0.0)
        f0, f1 = finite(o0), finite(o1)
        others = exponential(log_others - log_sum)
        of_labels = -finite(log_p0) * exponential(log_p0)
        mean_offset = row_moment * inverse + p0 * f0
        apart0 = f0 * others - row_moment * inverse
        apart1 = f1 * others - row_moment * inverse
        if PAIR:
            of_labels += tl.where(present1, -finite(log_p1) * exponential(log_p1), 0.0)
            mean_offset += p1 * f1
            apart0 += p1 * (f0 - f1)
            apart1 += p0 * (f1 - f0)
        value = tl.log(num_labels.to(tl.float32)) - (of_labels + (others * log_sum - row_moment * inverse))
        exp_factor, moment_factor = -mean_offset * inverse, inverse
        own0, own1 = p0 * apart0, p1 * apart1
    # Where there is no class but the row's labels the sums are 0, and their factor may be infinite.
    exp_factor = tl.where(factor == 0.0, 0.0, factor * (exp_factor + offset * moment_factor))
    lse, moment_factor = row_shift + log_sum, factor * moment_factor
    return row_shift, inverse, log_p0, lse, loss, label0, label1, value, exp_factor, moment_factor, own0, own1


@triton.jit
def label_weights(first_weight, present1):
    """Weights of a row's two labels; one that repeats the first has none."""
    w1 = tl.where(present1, 1.0 - first_weight, 0.0)
    return 1.0 - w1, w1


@triton.jit
def join_second_label(before, after, label0, label1, z1):
    """Largest logits below and above the first label; what leaves the second label out, it joins here."""
    before = tl.where(label1 < label0, tl.maximum(before, z1), before)
    return before, tl.where(label1 > label0, tl.maximum(after, z1), after)


@triton.jit
def store_row_values(
    values, hit, rows_M, inside_M, loss_M, value_M, log_p_M, lse_M, z0_M, before_M, after_M, num_labels
):
    """Write cross-entropy, the same once more for the joint loss, regularizer, bits, margin and log Σ e^z; and the hits."""
    tl.store(values[0] + rows_M, loss_M, mask=inside_M)
    tl.store(values[1] + rows_M, loss_M, mask=inside_M)
    tl.store(values[2] + rows_M, value_M, mask=inside_M)
    tl.store(values[3] + rows_M, (tl.log(num_labels.to(tl.float32)) + log_p_M) / LN_2, mask=inside_M)
    tl.store(values[4] + rows_M, z0_M - tl.maximum(before_M, after_M), mask=inside_M)
    tl.store(values[5] + rows_M, lse_M, mask=inside_M)
    tl.store(hit + rows_M, (z0_M > before_M) & (z0_M >= after_M), mask=inside_M)


@triton.jit
def row_terms_kernel(
    values,
    hit,
    scale,
    label_gradient,
    exp_factor,
    moment_factor,
    own_gradient,
    state,
    label_stats,
    slab_shift,
    labels,
    first_weight,
    num_rows,
    num_slabs,
    num_labels,
    PAIR: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rows of all heads: from the state that `merge_tiles_kernel` leaves to values and coefficients.

    `values` are six: cross-entropy, the same once more for the joint loss, regularizer, bits, margin, log Σ e^z. `scale`
    multiplies the kept exponentials of each slab in the cross-entropy's dL/dz, `label_gradient` is that at the labels; the last
    three outputs are the regularizer's.
    """
    rows_M = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside_M = rows_M < num_rows
    label_M = tl.load(labels + rows_M, mask=inside_M, other=0)
    z0_M = tl.load(label_stats + rows_M, mask=inside_M, other=0.0)
    before_M = tl.load(state + 4 * num_rows + rows_M, mask=inside_M, other=0.0)
    after_M = tl.load(state + 5 * num_rows + rows_M, mask=inside_M, other=0.0)
    z1_M, w0_M, w1_M, present1_M = z0_M, tl.full((ROWS,), 1.0, tl.float32), tl.zeros((ROWS,), tl.float32), inside_M
    if PAIR:
        second_M = tl.load(labels + num_rows + rows_M, mask=inside_M, other=0)
        z1_M = tl.load(label_stats + num_rows + rows_M, mask=inside_M, other=0.0)
        present1_M = second_M != label_M
        first_weight_M = tl.load(first_weight + rows_M, mask=inside_M, other=1.0)
        w0_M, w1_M = label_weights(first_weight_M, present1_M)
        before_M, after_M = join_second_label(before_M, after_M, label_M, second_M, z1_M)
    shift_M = tl.load(slab_shift + (num_slabs - 1) * num_rows + rows_M, mask=inside_M, other=0.0)
    sum_M = tl.load(state + num_rows + rows_M, mask=inside_M, other=1.0)
    moment_M = tl.load(state + 2 * num_rows + rows_M, mask=inside_M, other=0.0)
    logits_M = tl.load(state + 3 * num_rows + rows_M, mask=inside_M, other=0.0)
    row_shift_M, inverse_M, log_p_M, lse_M, loss_M, label0_M, label1_M, value_M, exp_M, own_moment_M, own0_M, own1_M = (
        terms_of_rows(*(shift_M, sum_M, moment_M, logits_M, z0_M, z1_M, present1_M, w0_M, w1_M, num_labels, PAIR, KIND))
    )
    store_row_values(
        *(values, hit, rows_M, inside_M, loss_M, value_M, log_p_M, lse_M, z0_M, before_M, after_M, num_labels),
    )
    for slab in range(num_slabs):
        at_M = slab * num_rows + rows_M
        of_slab_M = tl.load(slab_shift + at_M, mask=inside_M, other=0.0)
        tl.store(scale + at_M, inverse_M * exponential(of_slab_M - row_shift_M), mask=inside_M)
    tl.store(label_gradient + rows_M, label0_M, mask=inside_M)
    tl.store(exp_factor + rows_M, exp_M, mask=inside_M)
    tl.store(moment_factor + rows_M, own_moment_M, mask=inside_M)
    tl.store(own_gradient + rows_M, own0_M, mask=inside_M)
    if PAIR:
        tl.store(label_gradient + num_rows + rows_M, label1_M, mask=inside_M)
        tl.store(own_gradient + num_rows + rows_M, own1_M, mask=inside_M)


@triton.jit
def written_rows_kernel(
    values,
    hit,
    class_gradient,
    feature_gradient,
    logits,
    labels,
    first_weight,
    num_rows,
    num_labels,
    PAIR: tl.constexpr,
    KIND: tl.constexpr,
    FOR_CLASSES: tl.constexpr,
    FOR_FEATURES: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Rows of heads with few labels, from their written logits: values, and dL/dz of cross-entropy and regularizer.

    `values` as for `row_terms_kernel`; a block holds whole rows.
    """
    rows_M = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns_1N = tl.arange(0, CLASSES)[None, :]
    inside_M = rows_M < num_rows
    is_class_MN = inside_M[:, None] & (columns_1N < num_labels)
    at_MN = rows_M.to(tl.int64)[:, None] * num_labels + columns_1N
    logits_MN = tl.load(logits + at_MN, mask=is_class_MN, other=0.0)
    label0_M = tl.load(labels + rows_M, mask=inside_M, other=0)
    is_first_MN = columns_1N == label0_M[:, None]
    is_second_MN = is_first_MN
    z0_M = tl.sum(tl.where(is_first_MN, logits_MN, 0.0), 1)
    z0_M = tl.where((label0_M >= 0) & (label0_M < num_labels), z0_M, float("-inf"))
    z1_M, w0_M, w1_M, present1_M = z0_M, tl.full((ROWS,), 1.0, tl.float32), tl.zeros((ROWS,), tl.float32), inside_M
    is_other_MN = is_class_MN & (columns_1N != label0_M[:, None])
    if PAIR:
        label1_M = tl.load(labels + num_rows + rows_M, mask=inside_M, other=0)
        is_second_MN = columns_1N == label1_M[:, None]
        z1_M = tl.sum(tl.where(is_second_MN, logits_MN, 0.0), 1)
        z1_M = tl.where((label1_M >= 0) & (label1_M < num_labels), z1_M, float("-inf"))
        present1_M = label1_M != label0_M
        w0_M, w1_M = label_weights(tl.load(first_weight + rows_M, mask=inside_M, other=1.0), present1_M)
        is_other_MN = is_other_MN & (columns_1N != label1_M[:, None])
    others_MN = tl.where(is_other_MN, logits_MN, float("-inf"))
    before_M = tl.max(tl.where(columns_1N < label0_M[:, None], others_MN, float("-inf")), 1)
    after_M = tl.max(tl.where(columns_1N > label0_M[:, None], others_MN, float("-inf")), 1)
    largest_M = tl.maximum(before_M, after_M)
    shift_M = tl.where(largest_M > float("-inf"), largest_M, NO_CLASS_SHIFT)
    if PAIR:
        before_M, after_M = join_second_label(before_M, after_M, label0_M, label1_M, z1_M)
    offset_MN = tl.where(is_other_MN, logits_MN - shift_M[:, None], 0.0)
    exp_MN = tl.where(is_other_MN, exponential(offset_MN), 0.0)
    # 0·(−∞) is no moment; and the choice keeps the product out of a fused multiply-add, which would round the sums of a row's
    # threads differently.
    moment_MN = tl.where(exp_MN > 0.0, exp_MN * offset_MN, 0.0)
    sum_M = tl.sum(exp_MN, 1)
    row_shift_M, inverse_M, log_p_M, lse_M, loss_M, own0_M, own1_M, value_M, exp_M, moment_M, other0_M, other1_M = (
        terms_of_rows(
            *(shift_M, sum_M, tl.sum(moment_MN, 1), tl.sum(tl.where(is_class_MN, logits_MN, 0.0), 1)),
            *(z0_M, z1_M, present1_M, w0_M, w1_M, num_labels, PAIR, KIND),
        )
    )
    store_row_values(
        *(values, hit, rows_M, inside_M, loss_M, value_M, log_p_M, lse_M, z0_M, before_M, after_M, num_labels),
    )
    if FOR_CLASSES:
        scale_M = inverse_M * exponential(shift_M - row_shift_M)
        gradient_MN = tl.where(is_first_MN, own0_M[:, None], exp_MN * scale_M[:, None])
        if PAIR:
            gradient_MN += tl.where(is_second_MN, own1_M[:, None], 0.0)
        tl.store(class_gradient + at_MN, gradient_MN, mask=is_class_MN)
    if FOR_FEATURES:
        gradient_MN = tl.where(is_first_MN, other0_M[:, None], exp_MN * exp_M[:, None])
        if KIND == ENTROPY:
            gradient_MN += moment_MN * moment_M[:, None]
        if PAIR:
            gradient_MN += tl.where(is_second_MN, other1_M[:, None], 0.0)
        if KIND == UNIFORM:
            gradient_MN -= 1.0 / num_labels
        tl.store(feature_gradient + at_MN, gradient_MN, mask=is_class_MN)
