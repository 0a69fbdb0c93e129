"""The Triton kernels of the pass over the logits; `rlpheads.kernels.gpu.triton_loss` explains how all kernels work together.

Names: rows M, classes N and features D of a tile. There are no atomics: one program writes each output, so that sums are
deterministic. Exponents are base 2; a row's *lift* is a whole number of powers of two by which its shift was raised.

Triton's interpreter multiplies bf16 wrongly and truncates where it should round. `EMULATED` routes both through
`accumulate_dot` and `round_to_nearest`, which a GPU never takes.
"""

import triton
import triton.language as tl

from rlpheads.kernels.gpu import slab_plan

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
FLAT_RANGE = tl.constexpr(1.0)
GROUP = tl.constexpr(slab_plan.BUFFER_GROUP)


@triton.jit
def accumulate_dot(a, b, total, PRECISION: tl.constexpr, EMULATED: tl.constexpr):
    """Add A·B to the float32 total on the tensor cores."""
    if EMULATED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def round_to_nearest(x, dtype: tl.constexpr, EMULATED: tl.constexpr):
    """Round float32 to nearest even."""
    if EMULATED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), bits) & 0xFFFF0000
        return bits.to(tl.float32, bitcast=True).to(dtype)
    return x.to(dtype)


@triton.jit
def shift_lift(largest, shift, LIMIT: tl.constexpr):
    """Powers of two by which a tile's shift is raised: 0 unless 2^LIMIT would be exceeded."""
    excess = (largest - shift) * LOG2_E
    return tl.where(excess > LIMIT, tl.ceil(excess), 0.0)


@triton.jit
def logits_tile(
    features,
    weight,
    bias,
    own_rows,
    own_classes,
    first_row,
    first_class,
    num_rows,
    num_classes,
    num_features,
    stride_x,
    stride_w,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    FEATURES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Logits X Wᵀ + b of one tile, float32; in the ragged tails of rows and classes they mean nothing.

    `own_rows` and `own_classes`: where the head's features and classes begin among those of all heads. The sum starts at the
    bias: added to it afterwards, it would take registers from the epilogue.
    """
    columns_N = first_class + tl.arange(0, CLASSES)
    total_MN = tl.zeros((ROWS, CLASSES), tl.float32)
    if HAS_BIAS:
        bias_N = tl.load(bias + own_classes + columns_N, mask=columns_N < num_classes, other=0.0).to(tl.float32)
        total_MN += bias_N[None, :]
    if TMA:
        for d in range(0, num_features, FEATURES):
            x_MD = features.load([own_rows + first_row, d])
            w_ND = weight.load([own_classes + first_class, d])
            total_MN = accumulate_dot(x_MD, tl.trans(w_ND), total_MN, PRECISION, EMULATED)
    else:
        rows_M = first_row + tl.arange(0, ROWS)
        inside_M1 = (rows_M < num_rows)[:, None]
        inside_1N = (columns_N < num_classes)[None, :]
        x_M1 = features + (own_rows + rows_M).to(tl.int64)[:, None] * stride_x
        w_1N = weight + (own_classes + columns_N).to(tl.int64)[None, :] * stride_w
        for d in range(0, num_features, FEATURES):
            inside_D = d + tl.arange(0, FEATURES) < num_features
            offset_D = d + tl.arange(0, FEATURES)
            x_MD = tl.load(x_M1 + offset_D[None, :], mask=inside_M1 & inside_D[None, :], other=0.0)
            w_DN = tl.load(w_1N + offset_D[:, None], mask=inside_1N & inside_D[:, None], other=0.0)
            total_MN = accumulate_dot(x_MD, w_DN, total_MN, PRECISION, EMULATED)
    return total_MN


@triton.jit
def load_labels(labels, rows_M, num_rows, start, PAIR: tl.constexpr):
    """First and second label of each row, counted from the range's first class; without pairs they are the same.

    `labels` are those of the head's rows; the second labels of all heads' rows follow the first ones of all.
    """
    label_M = (tl.load(labels + rows_M, mask=rows_M < num_rows, other=-1) - start).to(tl.int32)
    if PAIR:
        second = labels + num_rows * tl.num_programs(1)
        return label_M, (tl.load(second + rows_M, mask=rows_M < num_rows, other=-1) - start).to(tl.int32)
    return label_M, label_M


@triton.jit
def store_label_logits(logits_MN, columns_N, label_M, target_M, holds_M):
    """Write the logits at the labels that lie in the tile."""
    logit_M = tl.sum(tl.where(columns_N[None, :] == label_M[:, None], logits_MN, 0.0), 1)
    tl.store(target_M, logit_M, mask=holds_M)


@triton.jit
def max_without_label(logits_MN, columns_N, label_M, holds_M, own_before_M, own_after_M):
    """Largest logit of each row, its first label left out; in the label's tile also the largest before and after it."""
    before_M = tl.max(tl.where(columns_N[None, :] < label_M[:, None], logits_MN, float("-inf")), 1)
    after_M = tl.max(tl.where(columns_N[None, :] > label_M[:, None], logits_MN, float("-inf")), 1)
    tl.store(own_before_M, before_M, mask=holds_M)
    tl.store(own_after_M, after_M, mask=holds_M)
    return tl.maximum(before_M, after_M)


@triton.jit
def store_tile(
    matrix, values_MN, first_row, first_class, stride, inside_MN, WHOLE: tl.constexpr, EMULATED: tl.constexpr
):
    """Round and write a tile, whole or what is inside; only the offset of its first element needs 64 bits.

    `first_row` counts the rows of all heads.
    """
    rows_M1 = tl.arange(0, values_MN.shape[0])[:, None]
    columns_1N = tl.arange(0, values_MN.shape[1])[None, :]
    first = matrix + first_row.to(tl.int64) * stride + first_class
    values_MN = round_to_nearest(values_MN, matrix.dtype.element_ty, EMULATED)
    if WHOLE:
        tl.store(first + (rows_M1 * stride + columns_1N), values_MN)
    else:
        tl.store(first + (rows_M1 * stride + columns_1N), values_MN, mask=inside_MN)


@triton.jit
def subtract_base(exp_MN, base, lift_M, rows_M, num_rows, PLAIN: tl.constexpr):
    """Subtract the row's base, halved by each lift, from its exponentials; two rows of ones follow the last row."""
    base_M = tl.load(base + rows_M, mask=rows_M < num_rows, other=0.0) * tl.exp2(-lift_M)
    if PLAIN:
        return exp_MN - base_M[:, None]
    ones_M = ((rows_M == num_rows) | (rows_M == num_rows + 1)).to(tl.float32)
    return tl.where((rows_M < num_rows)[:, None], exp_MN - base_M[:, None], ones_M[:, None])


@triton.jit
def finish_tile(  # noqa: C901 - its branches are resolved when it is compiled
    logits_MN,
    head,
    tile,
    first_row,
    first_class,
    labels,
    start,
    shift,
    base,
    exps,
    moments,
    tile_max,
    tile_sum,
    tile_moment,
    tile_logits,
    label_logit,
    own_before,
    own_after,
    num_rows,
    num_kept_rows,
    num_classes,
    stride_e,
    stride_m,
    PLAIN: tl.constexpr,
    PAIR: tl.constexpr,
    STATISTICS: tl.constexpr,
    KEEP: tl.constexpr,
    HAS_BASE: tl.constexpr,
    MOMENT: tl.constexpr,
    KEEP_MOMENT: tl.constexpr,
    SUM_LOGITS: tl.constexpr,
    LIMIT: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """The fused epilogue of a tile: exponentials and every statistic of its rows.

    PLAIN: all rows and classes of the tile exist, and none is a label. Most tiles are so; nothing is compared or masked then.
    """
    rows_M = first_row + tl.arange(0, logits_MN.shape[0])
    in_rows_M = rows_M < num_rows
    num_total = num_rows * tl.num_programs(1)
    places_M = head * num_rows + rows_M
    columns_N = tl.arange(0, logits_MN.shape[1])
    in_classes_1N = (columns_N < num_classes - first_class)[None, :]
    shift_M = tl.load(shift + places_M, mask=in_rows_M, other=0.0)
    lift_M = tl.zeros_like(shift_M)
    out_M = tile.to(tl.int64) * num_total + places_M
    if SUM_LOGITS:
        known_MN = logits_MN if PLAIN else tl.where(in_classes_1N, logits_MN, 0.0)
        tl.store(tile_logits + out_M, tl.sum(known_MN, 1), mask=in_rows_M)
    if not PLAIN:
        label_M, second_M = load_labels(labels + head * num_rows, rows_M, num_rows, start + first_class, PAIR)
        end_class = tl.minimum(logits_MN.shape[1], num_classes - first_class)
        logits_MN = tl.where(in_classes_1N, logits_MN, float("-inf"))
        holds_M = in_rows_M & (label_M >= 0) & (label_M < end_class)
        if STATISTICS:
            store_label_logits(logits_MN, columns_N, label_M, label_logit + places_M, holds_M)
        if PAIR:
            if STATISTICS:
                holds_second_M = in_rows_M & (second_M >= 0) & (second_M < end_class)
                store_label_logits(logits_MN, columns_N, second_M, label_logit + num_total + places_M, holds_second_M)
            logits_MN = tl.where(columns_N[None, :] == second_M[:, None], float("-inf"), logits_MN)
    if STATISTICS:
        if PLAIN:
            largest_M = tl.max(logits_MN, 1)
        else:
            largest_M = max_without_label(
                logits_MN, columns_N, label_M, holds_M, own_before + places_M, own_after + places_M
            )
        tl.store(tile_max + out_M, largest_M, mask=in_rows_M)
        lift_M = shift_lift(largest_M, shift_M, LIMIT)
    if not PLAIN:
        # Read once more: kept until here, the labels would be the registers that two blocks a multiprocessor do not have.
        label_M, _ = load_labels(labels + head * num_rows, rows_M, num_rows, start + first_class, PAIR)
        logits_MN = tl.where(columns_N[None, :] == label_M[:, None], float("-inf"), logits_MN)
    if exps.dtype.element_ty.primitive_bitwidth == 16:
        # One instruction in place of two; it rounds the shift, which is the row's own, by far less than operands are rounded.
        exponent_MN = logits_MN * LOG2_E - (shift_M * LOG2_E + lift_M)[:, None]
    else:
        exponent_MN = (logits_MN - shift_M[:, None]) * LOG2_E - lift_M[:, None]
    exp_MN = tl.exp2(exponent_MN)
    if STATISTICS:
        tl.store(tile_sum + out_M, tl.sum(exp_MN, 1), mask=in_rows_M)
    if MOMENT:
        moment_MN = exp_MN * exponent_MN * LN_2
        if not PLAIN:
            moment_MN = tl.where(exponent_MN > float("-inf"), moment_MN, 0.0)
        tl.store(tile_moment + out_M, tl.sum(moment_MN, 1), mask=in_rows_M)
    # Buffers are padded to whole groups of classes: a mask that is one for a group leaves stores of 16 bytes at every K.
    in_groups_1N = (first_class + tl.arange(0, logits_MN.shape[1]) // GROUP * GROUP < num_classes)[None, :]
    if KEEP_MOMENT:
        inside_MN = in_rows_M[:, None] & in_groups_1N
        store_tile(moments, moment_MN, head * num_rows + first_row, first_class, stride_m, inside_MN, PLAIN, EMULATED)
    if KEEP:
        if HAS_BASE:
            exp_MN = subtract_base(exp_MN, base + head * num_rows, lift_M, rows_M, num_rows, PLAIN)
        inside_MN = (rows_M < num_kept_rows)[:, None] & in_groups_1N
        store_tile(exps, exp_MN, head * num_kept_rows + first_row, first_class, stride_e, inside_MN, PLAIN, EMULATED)


@triton.jit
def class_tiles_kernel(
    features,
    weight,
    bias,
    labels,
    shift,
    base,
    exps,
    moments,
    tile_max,
    tile_sum,
    tile_moment,
    tile_logits,
    label_logit,
    own_before,
    own_after,
    num_rows,
    num_kept_rows,
    num_classes,
    num_features,
    start,
    rows_apart,
    classes_apart,
    stride_x,
    stride_w,
    stride_e,
    stride_m,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    FEATURES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PAIR: tl.constexpr,
    STATISTICS: tl.constexpr,
    KEEP: tl.constexpr,
    HAS_BASE: tl.constexpr,
    MOMENT: tl.constexpr,
    KEEP_MOMENT: tl.constexpr,
    SUM_LOGITS: tl.constexpr,
    TMA: tl.constexpr,
    LIMIT: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """One tile of logits, and from registers, as its fused epilogue, what `finish_tile` makes of them.

    Rows come before classes in the grid, so that the tile of the weight is read from memory once; a head's tiles come before
    the next head's. `rows_apart` and `classes_apart`: between the features and the classes of two heads.
    """
    head = tl.program_id(1)
    row_tiles = tl.cdiv(num_kept_rows, ROWS)
    tile = tl.program_id(0) // row_tiles
    first_row = tl.program_id(0) % row_tiles * ROWS
    first_class = tile * CLASSES
    rows_M = first_row + tl.arange(0, ROWS)
    label_M, second_M = load_labels(labels + head * num_rows, rows_M, num_rows, start, PAIR)
    is_inner = (first_row + ROWS <= num_rows) & (first_class + CLASSES <= num_classes)
    holds_any = tl.max(((label_M >= first_class) & (label_M < first_class + CLASSES)).to(tl.int32), 0)
    if PAIR:
        holds_second_M = (second_M >= first_class) & (second_M < first_class + CLASSES)
        holds_any = tl.maximum(holds_any, tl.max(holds_second_M.to(tl.int32), 0))
    logits_MN = logits_tile(
        *(
            features,
            weight,
            bias,
            head * rows_apart,
            head * classes_apart,
            first_row,
            first_class,
            num_rows,
            num_classes,
            num_features,
            stride_x,
            stride_w,
        ),
        *(ROWS, CLASSES, FEATURES, HAS_BIAS, TMA, PRECISION, EMULATED),
    )
    if is_inner & (holds_any == 0):
        finish_tile(
            *(logits_MN, head, tile, first_row, first_class, labels, start, shift, base, exps, moments),
            *(tile_max, tile_sum, tile_moment, tile_logits, label_logit, own_before, own_after),
            *(num_rows, num_kept_rows, num_classes, stride_e, stride_m),
            *(True, PAIR, STATISTICS, KEEP, HAS_BASE, MOMENT, KEEP_MOMENT, SUM_LOGITS, LIMIT, EMULATED),
        )
    else:
        finish_tile(
            *(logits_MN, head, tile, first_row, first_class, labels, start, shift, base, exps, moments),
            *(tile_max, tile_sum, tile_moment, tile_logits, label_logit, own_before, own_after),
            *(num_rows, num_kept_rows, num_classes, stride_e, stride_m),
            *(False, PAIR, STATISTICS, KEEP, HAS_BASE, MOMENT, KEEP_MOMENT, SUM_LOGITS, LIMIT, EMULATED),
        )
