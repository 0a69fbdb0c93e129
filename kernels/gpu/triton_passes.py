"""The two passes over the classes on a GPU, slab by slab: statistics and products forward, gradients backward.

Both serve all heads of their operands at once; with several heads there is one slab. Imports Triton, and is itself imported at
the first call only. Reads nothing on the host.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.gpu import triton_gradient_launch as gradient_launch
from rlpheads.kernels.gpu import triton_launch as launch
from rlpheads.kernels.gpu.slab_plan import NUM_STATE, SLAB_ROUNDING, PassOutputs, SlabPlan, pad_classes, slab_ranges
from rlpheads.kernels.gpu.triton_gradient_launch import FeatureSums, GradientRows, SortedLabels
from rlpheads.kernels.gpu.triton_launch import ExpReference, Operands, SlabBuffers, SlabState
from rlpheads.kernels.gpu.triton_tiles import FIRST_CLASSES, TileConfig
from rlpheads.kernels.rows.partials import Exponentials, LogitGradient


def matmul_float32(a_HMN: Tensor, b_HNK: Tensor) -> Tensor:
    """A·B of each head in float32, by the library's matrix product."""
    if a_HMN.device.type == "cpu" or a_HMN.dtype == torch.float32:
        return a_HMN.float() @ b_HNK.float()
    return torch.bmm(a_HMN, b_HNK, out_dtype=torch.float32)


def matmul_into(out_HMK: Tensor, a_HMN: Tensor, b_HNK: Tensor) -> None:
    """Write A·B of each head, summed in float32 and rounded once."""
    if a_HMN.device.type == "cpu":
        out_HMK.copy_(matmul_float32(a_HMN, b_HNK))
    elif a_HMN.dtype == out_HMK.dtype:
        torch.bmm(a_HMN, b_HNK, out=out_HMK)
    elif out_HMK.dtype == torch.float32:
        torch.bmm(a_HMN, b_HNK, out_dtype=torch.float32, out=out_HMK)
    else:
        out_HMK.copy_(matmul_float32(a_HMN, b_HNK))


class ForwardPass(NamedTuple):
    """What a pass over the classes yields for the rows R of all heads."""

    state_SR: Tensor
    """The rows' state, as `slab_plan.NUM_STATE` says."""
    label_stats_FR: Tensor
    """Logit of each label; then the largest logits before and after the first label in its own tile."""
    sums: FeatureSums
    kept_RK: Tensor
    """Exponentials of the first classes, in buffers of each head."""
    shift_CR: Tensor
    """Shift of each slab's exponentials."""
    base_CR: Tensor
    """Their base; without numbers where it is 0."""


class _SlabSums:
    """Exponentials and moments times the weight, summed over the slabs so far under the rows' current lift."""

    def __init__(self, operands: Operands, outputs: PassOutputs) -> None:
        self._heads, self._outputs = (operands.num_heads, operands.num_rows), outputs
        self._moments = outputs.products and outputs.moments
        num_features = operands.features_RD.shape[1]
        empty = operands.labels_LR.new_empty
        self._exp_HBD, self._moment_HBD = (empty((0, 0, num_features), dtype=torch.float32) for _ in range(2))
        self._sum_HD = empty(0, dtype=torch.float32)

    @property
    def sums(self) -> FeatureSums:
        """The sums of all slabs."""
        exp_RD, moment_RD = (each.flatten(0, -2).contiguous() for each in (self._exp_HBD, self._moment_HBD))
        return FeatureSums(exp_RD, moment_RD, self._sum_HD.contiguous())

    def add(self, buffers: SlabBuffers, base_R: Tensor, weight_KD: Tensor, drop_R: Tensor | None) -> None:
        """Add a slab's; the rows' lift has risen by −drop since the last one, None at the first.

        With bases, a row of ones below the exponentials yields ΣW in the same product.
        """
        assert buffers.exp_RK is not None
        num_heads, num_rows = self._heads
        weight_HKD = weight_KD.unflatten(0, (num_heads, -1))
        products_HRD = matmul_float32(buffers.exp_RK.unflatten(0, (num_heads, -1)), weight_HKD)
        exp_HBD, sum_HD = products_HRD[:, :num_rows], products_HRD[:, -1]
        if self._outputs.has_base:
            sum_HD = products_HRD[:, num_rows]
            exp_HBD = torch.addcmul(exp_HBD, base_R.view(num_heads, -1, 1), sum_HD[:, None])
        moment_HBD = None
        if buffers.moment_RK is not None:
            moment_HBD = matmul_float32(buffers.moment_RK.unflatten(0, (num_heads, -1)), weight_HKD)
        if drop_R is not None:
            exp_HBD, moment_HBD = self._with_earlier(exp_HBD, moment_HBD, drop_R.view(num_heads, -1, 1))
            sum_HD = sum_HD + self._sum_HD if self._outputs.sum_logits else sum_HD
        self._exp_HBD = exp_HBD
        self._moment_HBD = self._moment_HBD if moment_HBD is None else moment_HBD
        self._sum_HD = sum_HD if self._outputs.sum_logits else self._sum_HD

    def _with_earlier(
        self, exp_HBD: Tensor, moment_HBD: Tensor | None, drop_HB1: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Add the sums of the slabs before, times 2^drop."""
        factor_HB1 = torch.exp2(drop_HB1)
        if moment_HBD is not None:
            earlier_HBD = self._moment_HBD.addcmul(self._exp_HBD, drop_HB1, value=math.log(2))
            moment_HBD = torch.addcmul(moment_HBD, earlier_HBD, factor_HB1)
        return torch.addcmul(exp_HBD, self._exp_HBD, factor_HB1), moment_HBD


def forward_pass(operands: Operands, plan: SlabPlan, outputs: PassOutputs, tiles: TileConfig) -> ForwardPass:
    """Statistics of every row, its products, and the exponentials to be kept."""
    features_RD = operands.features_RD
    if plan.num_slabs == 1:
        operands = operands.cast(features_RD)
    label_stats_FR = operands.labels_LR.new_empty(
        (len(operands.labels_LR) + 2, operands.labels_LR.shape[1]), dtype=torch.float32
    )
    first = operands if operands.num_heads > 1 else operands.narrow(0, min(FIRST_CLASSES, operands.num_classes))
    reference = launch.row_shifts(first.cast(features_RD), label_stats_FR, outputs.has_base)
    if outputs.products and outputs.moments:
        no_base = reference._replace(base_R=reference.base_R[:0])
        found = _forward_slabs(
            *(operands, no_base, SlabPlan(1, 0, operands.num_rows), PassOutputs(False, False, False)),
            *(tiles, label_stats_FR),
        )
        launch.exact_shifts(reference, found.state_SR)
    return _forward_slabs(operands, reference, plan, outputs, tiles, label_stats_FR)


def _forward_slabs(
    operands: Operands,
    reference: ExpReference,
    plan: SlabPlan,
    outputs: PassOutputs,
    tiles: TileConfig,
    label_stats_FR: Tensor,
) -> ForwardPass:
    features_RD, num_heads = operands.features_RD, operands.num_heads
    statistic = reference.shift_R.new_empty
    num_rows = len(reference.shift_R)
    state_SR, shift_CR = statistic(NUM_STATE, num_rows), statistic(plan.num_slabs, num_rows)
    base_CR = statistic(plan.num_slabs, len(reference.base_R))
    ranges = slab_ranges(plan.num_slabs, operands.num_rows, operands.num_classes, features_RD.dtype.itemsize)
    kept_RK = features_RD.new_empty(num_heads * plan.buffer_rows, plan.buffer_classes)
    scratch = _Scratch(operands, plan, outputs, ranges)
    sums = _SlabSums(operands, outputs)
    for number, (start, stop) in enumerate(ranges):
        slab = operands.narrow(start, stop).cast(features_RD)
        buffers = scratch.buffers(kept_RK, start, stop)
        statistics = launch.allocate_statistics(slab, tiles, outputs, label_stats_FR)
        launch.class_tiles(slab, reference, buffers, tiles, statistics)
        old_lift_R = state_SR[0].clone() if number else None
        state = SlabState(state_SR, shift_CR[number], base_CR[number])
        launch.merge_tiles(slab, reference, statistics, state, tiles, number == 0)
        if buffers.exp_RK is not None:
            launch.align_tiles(slab, buffers, reference, statistics, state_SR[0], tiles)
        if outputs.products:
            drop_R = None if old_lift_R is None else old_lift_R - state_SR[0]
            sums.add(buffers, state.base_R, slab.weight_KD, drop_R)
    return ForwardPass(state_SR, label_stats_FR, sums.sums, kept_RK, shift_CR, base_CR)


class _Scratch:
    """Scratch buffers: exponentials of the slabs that are not kept, and moments."""

    def __init__(self, operands: Operands, plan: SlabPlan, outputs: PassOutputs, ranges: list[tuple[int, int]]) -> None:
        self._num_kept = plan.num_kept
        features_RD, num_rows = operands.features_RD, operands.labels_LR.shape[1]
        width = pad_classes(ranges[0][1])
        spare = outputs.products and plan.num_kept < ranges[-1][1]
        self._exp_RK = features_RD.new_empty(operands.num_heads * plan.buffer_rows, width) if spare else None
        with_moments = outputs.products and outputs.moments
        self._moment_RK = features_RD.new_empty(num_rows, width) if with_moments else None

    def buffers(self, kept_RK: Tensor, start: int, stop: int) -> SlabBuffers:
        """Where the slab's exponentials and moments go."""
        moment_RK = None if self._moment_RK is None else self._moment_RK[:, : stop - start]
        if stop <= self._num_kept:
            return SlabBuffers(kept_RK[:, start:stop], moment_RK)
        return SlabBuffers(None if self._exp_RK is None else self._exp_RK[:, : stop - start], moment_RK)


class ClassGradients(NamedTuple):
    """Output buffers of the gradients, of all heads' classes; empty where they are not wanted."""

    weight_KD: Tensor
    bias_K: Tensor


class GradientSlab(NamedTuple):
    """What the gradients of a slab's classes are made from."""

    classes: slice
    """Its place among the classes of all heads."""
    operands: Operands
    rows: GradientRows


def gradient_slabs(operands: Operands, exponentials: Exponentials, gradient: LogitGradient) -> Iterator[GradientSlab]:
    """Yield the slabs, with the exponentials that were kept and others computed again, each at its turn."""
    kept_RK, shift_CR, base_CR = exponentials
    assert base_CR is not None
    operands = operands._replace(features_RD=launch.with_dense_rows(operands.features_RD))
    features_RD = operands.features_RD.to(kept_RK.dtype)
    ranges = slab_ranges(len(shift_CR), operands.num_rows, operands.num_classes, kept_RK.element_size())
    scratch_RK = kept_RK.new_empty(0)
    tiles = launch.tiles_for(operands, has_base=base_CR.numel() > 0)
    for number, (start, stop) in enumerate(ranges):
        slab = operands.narrow(start, stop)
        if stop <= kept_RK.shape[1]:
            exp_RK = kept_RK[:, start:stop]
        else:
            if not len(scratch_RK):
                scratch_RK = kept_RK.new_empty(len(kept_RK), pad_classes(stop - start))
            exp_RK = scratch_RK[:, : stop - start]
            reference = ExpReference(shift_CR[number], base_CR[number])
            launch.class_tiles(slab.cast(features_RD), reference, SlabBuffers(exp_RK), tiles)
        rows = GradientRows(exp_RK, gradient.scale_CB[number], base_CR[number], gradient.label_LB)
        yield GradientSlab(slice(None) if operands.num_heads > 1 else slice(start, stop), slab, rows)


def backward_pass(
    operands: Operands, exponentials: Exponentials, gradient: LogitGradient, gradients: ClassGradients
) -> None:
    """Write the gradients of weights and biases."""
    ordered = SortedLabels.of(operands) if len(gradients.weight_KD) else None
    for classes, slab, rows in gradient_slabs(operands, exponentials, gradient):
        if ordered is not None:
            _write_weight_gradient(gradients.weight_KD[classes], slab, rows, ordered)
        if len(gradients.bias_K):
            gradient_launch.class_sums(gradients.bias_K[classes], slab, rows)


def _write_weight_gradient(out_KD: Tensor, slab: Operands, rows: GradientRows, ordered: SortedLabels) -> None:
    """V = Eᵀ(v∘x), then the labels' rows in float32; each row is rounded once, also to a narrow dtype."""
    scaled_RD, factor_H = scaled_features(slab, rows)
    exp_HRK, scaled_HRD = (each.unflatten(0, (slab.num_heads, -1)) for each in (rows.exp_RK, scaled_RD))
    sums_ND = None
    if out_KD.dtype != torch.float32:
        column_HN = (ordered.labels_HN - slab.start).clamp(0, slab.num_classes - 1)
        at_labels_HRN = exp_HRK.gather(2, column_HN[:, None].expand(-1, exp_HRK.shape[1], -1))
        sums_HND = matmul_float32(at_labels_HRN.mT, scaled_HRD)
        sums_ND = (sums_HND if factor_H is None else sums_HND * factor_H[:, None, None]).flatten(0, 1)
    out_HKD = out_KD.unflatten(0, (slab.num_heads, -1))
    if factor_H is None:
        matmul_into(out_HKD, exp_HRK.mT, scaled_HRD)
    else:
        for columns_HRK, out_of_HKD in zip(
            exp_HRK.split(SLAB_ROUNDING, 2), out_HKD.split(SLAB_ROUNDING, 1), strict=True
        ):
            out_of_HKD.copy_(matmul_float32(columns_HRK.mT, scaled_HRD) * factor_H[:, None, None])
    gradient_launch.add_label_rows(out_KD, sums_ND, slab, ordered, rows.label_LR)


def scaled_features(slab: Operands, rows: GradientRows) -> tuple[Tensor, Tensor | None]:
    """Return v∘x in the exponentials' dtype, and by what it must be multiplied, (H,); None: by nothing.

    float16 has too few exponents for v, whose size is that of 1/K times the upstream gradient: a power of two is taken out.
    """
    factor_H = None
    if rows.exp_RK.dtype == torch.float16:
        factor_H = _power_of_two_above(rows.scale_R.view(slab.num_heads, -1))
    return gradient_launch.scale_features(slab, rows, factor_H), factor_H


def _power_of_two_above(scale_HB: Tensor) -> Tensor:
    """The least power of two that no scale of a head exceeds, (H,); 1 where all are 0."""
    largest_H = scale_HB.abs().amax(1)
    return torch.where(largest_H > 0, torch.exp2(torch.ceil(torch.log2(largest_H))), 1.0)
