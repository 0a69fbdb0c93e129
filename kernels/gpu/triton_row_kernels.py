"""The Triton kernels beside the pass over the logits: gather labels, shifts of rows, merge and align tiles.

Each works on little beside the pass over the logits (`rlpheads.kernels.gpu.triton_kernels`, whose conventions hold here too).
"""

import triton
import triton.language as tl

from rlpheads.kernels.gpu.triton_kernels import (
    FLAT_RANGE,
    LN_2,
    LOG2_E,
    load_labels,
    logits_tile,
    round_to_nearest,
    shift_lift,
)
from rlpheads.kernels.rows import partials

NO_CLASS_SHIFT = tl.constexpr(partials.NO_CLASS_SHIFT)


@triton.jit
def gather_labels_kernel(rows, indices, strides, widths, labels, num_rows, SOURCES: tl.constexpr, ROWS: tl.constexpr):
    """Labels of several heads as int64, a program for ROWS labels of one: its row itself, or row[index] of a table's row.

    An index of −1 reads the row's first label, any other that is no column of it the label −1.
    """
    source = tl.program_id(1)
    rows_B = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows_B = rows_B < num_rows
    for number in tl.static_range(SOURCES):
        if source == number:
            column_B = rows_B.to(tl.int64)
            if indices[number] is not None:
                column_B = tl.load(indices[number] + rows_B, mask=in_rows_B, other=0).to(tl.int64)
            inside_B = in_rows_B & (column_B >= -1) & (column_B < widths[number])
            label_B = tl.load(rows[number] + tl.maximum(column_B, 0) * strides[number], mask=inside_B, other=-1)
            tl.store(labels + number * num_rows + rows_B, label_B.to(tl.int64), mask=in_rows_B)


@triton.jit
def row_shifts_kernel(
    features,
    weight,
    bias,
    labels,
    shift,
    base,
    label_stats,
    num_rows,
    num_classes,
    num_features,
    start,
    rows_apart,
    classes_apart,
    stride_x,
    stride_w,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    FEATURES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PAIR: tl.constexpr,
    HAS_BASE: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Guess each row's softmax shift: the largest logit of its first classes, its labels left out; a head a program.

    The labels' logits and the maxima beside them become −inf, as they stay where no tile holds the label.

    With HAS_BASE, a row whose first logits all lie within FLAT_RANGE gets the logarithm of their mean exponential, and
    base 1; every other row base 0.
    """
    first_row, head = tl.program_id(0) * ROWS, tl.program_id(1)
    num_total = num_rows * tl.num_programs(1)
    logits_MN = logits_tile(
        *(
            features,
            weight,
            bias,
            head * rows_apart,
            head * classes_apart,
            first_row,
            0,
            num_rows,
            num_classes,
            num_features,
            stride_x,
            stride_w,
        ),
        *(ROWS, CLASSES, FEATURES, HAS_BIAS, False, PRECISION, EMULATED),
    )
    rows_M = first_row + tl.arange(0, ROWS)
    in_rows_M = rows_M < num_rows
    columns_1N = tl.arange(0, CLASSES)[None, :]
    own = head * num_rows
    label_M, second_M = load_labels(labels + own, rows_M, num_rows, start, PAIR)
    for number in tl.static_range(4 if PAIR else 3):
        nothing_M = tl.full((ROWS,), float("-inf"), tl.float32)
        tl.store(label_stats + number * num_total + own + rows_M, nothing_M, mask=in_rows_M)
    is_other_MN = (columns_1N < num_classes) & (columns_1N != label_M[:, None]) & (columns_1N != second_M[:, None])
    num_others_M = tl.sum(is_other_MN.to(tl.float32), 1)
    largest_M = tl.max(tl.where(is_other_MN, logits_MN, float("-inf")), 1)
    shift_M = tl.where(largest_M > float("-inf"), largest_M, 0.0)
    if HAS_BASE:
        smallest_M = tl.min(tl.where(is_other_MN, logits_MN, float("inf")), 1)
        is_flat_M = (largest_M - smallest_M <= FLAT_RANGE) & (num_others_M > 0)
        exp_MN = tl.where(is_other_MN, tl.exp2((logits_MN - shift_M[:, None]) * LOG2_E), 0.0)
        mean_M = tl.sum(exp_MN, 1) / tl.maximum(num_others_M, 1.0)
        shift_M = tl.where(is_flat_M, shift_M + tl.log2(mean_M) * LN_2, shift_M)
        tl.store(base + own + rows_M, is_flat_M.to(tl.float32), mask=in_rows_M)
    tl.store(shift + own + rows_M, shift_M, mask=in_rows_M)


@triton.jit
def merge_tiles_kernel(
    tile_max,
    tile_sum,
    tile_moment,
    tile_logits,
    shift,
    labels,
    own_before,
    own_after,
    base,
    state,
    slab_shift,
    slab_base,
    num_rows,
    num_tiles,
    num_classes,
    start,
    FIRST: tl.constexpr,
    MOMENT: tl.constexpr,
    SUM_LOGITS: tl.constexpr,
    HAS_BASE: tl.constexpr,
    TILE_CLASSES: tl.constexpr,
    LIMIT: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Online-softmax merge of a slab's tiles, in a fixed order, into each row's state: lift, sum, moment, Σz, two maxima.

    Rows are those of all heads. With HAS_BASE also each row's base, halved by each lift.
    """
    rows_M = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows_M = rows_M < num_rows
    shift_M = tl.load(shift + rows_M, mask=in_rows_M, other=0.0)
    label_M = (tl.load(labels + rows_M, mask=in_rows_M, other=0) - start).to(tl.int32)
    label_tile_M = tl.where(label_M < 0, -1, tl.where(label_M >= num_classes, num_tiles, label_M // TILE_CLASSES))
    before_M = tl.load(own_before + rows_M, mask=in_rows_M, other=float("-inf"))
    after_M = tl.load(own_after + rows_M, mask=in_rows_M, other=float("-inf"))
    for first_tile in range(0, num_tiles, TILES):
        tiles_C = first_tile + tl.arange(0, TILES)
        inside_CM = (tiles_C < num_tiles)[:, None] & in_rows_M[None, :]
        place_CM = tiles_C.to(tl.int64)[:, None] * num_rows + rows_M[None, :]
        max_CM = tl.load(tile_max + place_CM, mask=inside_CM, other=float("-inf"))
        is_before_CM = tiles_C[:, None] < label_tile_M[None, :]
        is_after_CM = tiles_C[:, None] > label_tile_M[None, :]
        before_M = tl.maximum(before_M, tl.max(tl.where(is_before_CM, max_CM, float("-inf")), 0))
        after_M = tl.maximum(after_M, tl.max(tl.where(is_after_CM, max_CM, float("-inf")), 0))
    lift_M = shift_lift(tl.maximum(before_M, after_M), shift_M, LIMIT)
    sum_M = tl.zeros((ROWS,), tl.float32)
    moment_M = tl.zeros((ROWS,), tl.float32)
    logits_M = tl.zeros((ROWS,), tl.float32)
    old_lift_M = tl.zeros((ROWS,), tl.float32)
    if not FIRST:
        old_lift_M = tl.load(state + rows_M, mask=in_rows_M, other=0.0)
        before_M = tl.maximum(before_M, tl.load(state + 4 * num_rows + rows_M, mask=in_rows_M, other=0.0))
        after_M = tl.maximum(after_M, tl.load(state + 5 * num_rows + rows_M, mask=in_rows_M, other=0.0))
        lift_M = tl.maximum(lift_M, old_lift_M)
        old_sum_M = tl.load(state + num_rows + rows_M, mask=in_rows_M, other=0.0)
        sum_M = old_sum_M * tl.exp2(old_lift_M - lift_M)
        if MOMENT:
            old_moment_M = tl.load(state + 2 * num_rows + rows_M, mask=in_rows_M, other=0.0)
            old_moment_M += (old_lift_M - lift_M) * LN_2 * old_sum_M
            moment_M = old_moment_M * tl.exp2(old_lift_M - lift_M)
        if SUM_LOGITS:
            logits_M = tl.load(state + 3 * num_rows + rows_M, mask=in_rows_M, other=0.0)
    for first_tile in range(0, num_tiles, TILES):
        tiles_C = first_tile + tl.arange(0, TILES)
        inside_CM = (tiles_C < num_tiles)[:, None] & in_rows_M[None, :]
        place_CM = tiles_C.to(tl.int64)[:, None] * num_rows + rows_M[None, :]
        max_CM = tl.load(tile_max + place_CM, mask=inside_CM, other=float("-inf"))
        drop_CM = shift_lift(max_CM, shift_M[None, :], LIMIT) - lift_M[None, :]
        sum_CM = tl.load(tile_sum + place_CM, mask=inside_CM, other=0.0)
        sum_M += tl.sum(sum_CM * tl.exp2(drop_CM), 0)
        if MOMENT:
            moment_CM = tl.load(tile_moment + place_CM, mask=inside_CM, other=0.0) + drop_CM * LN_2 * sum_CM
            moment_M += tl.sum(moment_CM * tl.exp2(drop_CM), 0)
        if SUM_LOGITS:
            logits_M += tl.sum(tl.load(tile_logits + place_CM, mask=inside_CM, other=0.0), 0)
    has_others_M = tl.maximum(before_M, after_M) > float("-inf")
    row_shift_M = tl.where(has_others_M | (sum_M != sum_M), shift_M + lift_M * LN_2, NO_CLASS_SHIFT)
    tl.store(state + rows_M, lift_M, mask=in_rows_M)
    tl.store(state + num_rows + rows_M, sum_M, mask=in_rows_M)
    tl.store(state + 2 * num_rows + rows_M, moment_M, mask=in_rows_M)
    tl.store(state + 3 * num_rows + rows_M, logits_M, mask=in_rows_M)
    tl.store(state + 4 * num_rows + rows_M, before_M, mask=in_rows_M)
    tl.store(state + 5 * num_rows + rows_M, after_M, mask=in_rows_M)
    tl.store(slab_shift + rows_M, row_shift_M, mask=in_rows_M)
    if HAS_BASE:
        base_M = tl.load(base + rows_M, mask=in_rows_M, other=0.0)
        tl.store(slab_base + rows_M, base_M * tl.exp2(-lift_M), mask=in_rows_M)


@triton.jit
def exact_shifts_kernel(shift, base, state, num_rows, ROWS: tl.constexpr):
    """Replace guessed shifts by the rows' largest logits, and their bases by 0, unless the whole row is near chance."""
    rows_M = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside_M = rows_M < num_rows
    before_M = tl.load(state + 4 * num_rows + rows_M, mask=inside_M, other=0.0)
    after_M = tl.load(state + 5 * num_rows + rows_M, mask=inside_M, other=0.0)
    largest_M = tl.maximum(before_M, after_M)
    guess_M = tl.load(shift + rows_M, mask=inside_M, other=0.0)
    is_flat_M = (tl.load(base + rows_M, mask=inside_M, other=0.0) > 0) & (largest_M - guess_M <= FLAT_RANGE)
    exact_M = tl.where(largest_M > float("-inf"), largest_M, 0.0)
    tl.store(shift + rows_M, tl.where(is_flat_M, guess_M, exact_M), mask=inside_M)
    tl.store(base + rows_M, is_flat_M.to(tl.float32), mask=inside_M)


@triton.jit
def align_tiles_kernel(
    exps,
    moments,
    base,
    tile_max,
    shift,
    lift,
    num_rows,
    num_kept_rows,
    num_classes,
    stride_e,
    stride_m,
    HAS_BASE: tl.constexpr,
    MOMENT: tl.constexpr,
    LIMIT: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Rescale a tile's exponentials to the row's common lift, by exact powers of two; most programs return at once."""
    head = tl.program_id(1)
    row_tiles = tl.cdiv(num_rows, ROWS)
    tile = tl.program_id(0) // row_tiles
    rows_M = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    in_rows_M = rows_M < num_rows
    places_M = head * num_rows + rows_M
    first = tile.to(tl.int64) * num_rows * tl.num_programs(1)
    largest_M = tl.load(tile_max + first + places_M, mask=in_rows_M, other=float("-inf"))
    shift_M = tl.load(shift + places_M, mask=in_rows_M, other=0.0)
    lift_M = shift_lift(largest_M, shift_M, LIMIT)
    drop_M = tl.where(in_rows_M, lift_M - tl.load(lift + places_M, mask=in_rows_M, other=0.0), 0.0)
    if tl.max(tl.abs(drop_M), 0) == 0.0:
        return
    columns_N = tile * CLASSES + tl.arange(0, CLASSES)
    inside_MN = (in_rows_M & (drop_M != 0.0))[:, None] & (columns_N < num_classes)[None, :]
    place_MN = exps + (head * num_kept_rows + rows_M).to(tl.int64)[:, None] * stride_e + columns_N[None, :]
    exp_MN = tl.load(place_MN, mask=inside_MN, other=0.0).to(tl.float32)
    factor_M1 = tl.exp2(drop_M)[:, None]
    if MOMENT:
        moment_place_MN = moments + places_M.to(tl.int64)[:, None] * stride_m + columns_N[None, :]
        moment_MN = tl.load(moment_place_MN, mask=inside_MN, other=0.0).to(tl.float32)
        true_exp_MN = exp_MN
        if HAS_BASE:
            true_exp_MN += (tl.load(base + places_M, mask=in_rows_M, other=0.0) * tl.exp2(-lift_M))[:, None]
        moment_MN = (moment_MN + true_exp_MN * (drop_M * LN_2)[:, None]) * factor_M1
        tl.store(moment_place_MN, round_to_nearest(moment_MN, moments.dtype.element_ty, EMULATED), mask=inside_MN)
    tl.store(place_MN, round_to_nearest(exp_MN * factor_M1, exps.dtype.element_ty, EMULATED), mask=inside_MN)


@triton.jit
def merge_ranges_kernel(
    state,
    label_stats,
    shift,
    parts,
    num_rows,
    num_ranges,
    rows_apart,
    start,
    PAIR: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Merge the partials of class ranges into the state, label logits and shift of rows that then hold all classes.

    `parts` (ranges, 7, rows), with PAIR (ranges, 8, rows), are the members of `rlpheads.kernels.rows.partials.Partials`, each
    `rows_apart` numbers behind the one before; merged are `num_rows` rows from `start` on. The ranges are taken in their
    order, so that the same parts give the same bits.
    """
    rows_M = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside_M = rows_M < num_rows
    top_M = tl.full((ROWS,), NO_CLASS_SHIFT, tl.float32)
    part_M = parts + start + rows_M
    for _ in range(num_ranges):
        top_M = tl.maximum(top_M, tl.load(part_M, mask=inside_M, other=NO_CLASS_SHIFT))
        part_M += (8 if PAIR else 7) * rows_apart
    sum_M = tl.zeros((ROWS,), tl.float32)
    moment_M = tl.zeros((ROWS,), tl.float32)
    logits_M = tl.zeros((ROWS,), tl.float32)
    z0_M = tl.full((ROWS,), float("-inf"), tl.float32)
    z1_M = tl.full((ROWS,), float("-inf"), tl.float32)
    before_M = tl.full((ROWS,), float("-inf"), tl.float32)
    after_M = tl.full((ROWS,), float("-inf"), tl.float32)
    part_M = parts + start + rows_M
    for _ in range(num_ranges):
        drop_M = tl.load(part_M, mask=inside_M, other=NO_CLASS_SHIFT) - top_M
        factor_M = tl.exp2(drop_M * LOG2_E)
        own_sum_M = tl.load(part_M + rows_apart, mask=inside_M, other=0.0)
        own_moment_M = tl.load(part_M + 2 * rows_apart, mask=inside_M, other=0.0)
        sum_M += factor_M * own_sum_M
        moment_M += factor_M * (own_moment_M + drop_M * own_sum_M)
        logits_M += tl.load(part_M + 3 * rows_apart, mask=inside_M, other=0.0)
        z0_M = tl.maximum(z0_M, tl.load(part_M + 4 * rows_apart, mask=inside_M, other=0.0))
        if PAIR:
            z1_M = tl.maximum(z1_M, tl.load(part_M + 5 * rows_apart, mask=inside_M, other=0.0))
        before_M = tl.maximum(before_M, tl.load(part_M + (6 if PAIR else 5) * rows_apart, mask=inside_M, other=0.0))
        after_M = tl.maximum(after_M, tl.load(part_M + (7 if PAIR else 6) * rows_apart, mask=inside_M, other=0.0))
        part_M += (8 if PAIR else 7) * rows_apart
    tl.store(state + num_rows + rows_M, sum_M, mask=inside_M)
    tl.store(state + 2 * num_rows + rows_M, moment_M, mask=inside_M)
    tl.store(state + 3 * num_rows + rows_M, logits_M, mask=inside_M)
    tl.store(state + 4 * num_rows + rows_M, before_M, mask=inside_M)
    tl.store(state + 5 * num_rows + rows_M, after_M, mask=inside_M)
    tl.store(label_stats + rows_M, z0_M, mask=inside_M)
    if PAIR:
        tl.store(label_stats + num_rows + rows_M, z1_M, mask=inside_M)
    tl.store(shift + rows_M, top_M, mask=inside_M)
