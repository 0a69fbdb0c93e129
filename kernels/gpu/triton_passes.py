"""The two passes over the classes on a GPU, slab by slab: statistics and products forward, gradients backward.

Imports Triton, and is itself imported at the first call only. Reads nothing on the host.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.gpu import triton_launch as launch
from rlpheads.kernels.gpu.slab_plan import NUM_STATE, SLAB_ROUNDING, PassOutputs, SlabPlan, pad_classes, slab_ranges
from rlpheads.kernels.gpu.triton_launch import ExpReference, LabelTerms, Operands, SlabBuffers
from rlpheads.kernels.gpu.triton_tiles import FIRST_CLASSES, TileConfig
from rlpheads.kernels.rows.partials import Exponentials, LogitGradient


def matmul_float32(a_MN: Tensor, b_NK: Tensor) -> Tensor:
    """A·B in float32, by the library's matrix product."""
    if a_MN.device.type == "cpu" or a_MN.dtype == torch.float32:
        return a_MN.float() @ b_NK.float()
    return torch.mm(a_MN, b_NK, out_dtype=torch.float32)


def matmul_into(out_MK: Tensor, a_MN: Tensor, b_NK: Tensor) -> None:
    """Write A·B, summed in float32 and rounded once."""
    if a_MN.device.type == "cpu":
        out_MK.copy_(matmul_float32(a_MN, b_NK))
    elif a_MN.dtype == out_MK.dtype:
        torch.mm(a_MN, b_NK, out=out_MK)
    elif out_MK.dtype == torch.float32:
        torch.mm(a_MN, b_NK, out_dtype=torch.float32, out=out_MK)
    else:
        out_MK.copy_(matmul_float32(a_MN, b_NK))


class _FeatureSums:
    """Exponentials and moments times the weight, summed over the slabs so far under the rows' current lift."""

    def __init__(self, features_BD: Tensor, outputs: PassOutputs) -> None:
        num_rows, num_features = features_BD.shape
        self._outputs = outputs

        def zeros(*shape: int) -> Tensor:
            return features_BD.new_zeros(shape, dtype=torch.float32)

        self.exp_weight_BD = zeros(num_rows * outputs.products, num_features)
        self.moment_weight_BD = zeros(num_rows * (outputs.products and outputs.moments), num_features)
        self.weight_sum_D = zeros(num_features * (outputs.products and outputs.sum_logits))

    def rescale(self, drop_B: Tensor) -> None:
        """Multiply by 2^drop, as the rows' lift has risen by −drop."""
        factor_B1 = torch.exp2(drop_B)[:, None]
        if self._outputs.moments:
            self.moment_weight_BD.addcmul_(self.exp_weight_BD, drop_B[:, None], value=math.log(2)).mul_(factor_B1)
        self.exp_weight_BD.mul_(factor_B1)

    def add(self, buffers: SlabBuffers, base_B: Tensor, weight_KD: Tensor) -> None:
        """Add a slab. With bases, a row of ones below the exponentials yields ΣW in the same product."""
        assert buffers.exp_RK is not None
        num_rows = len(self.exp_weight_BD)
        exp_weight_RD = matmul_float32(buffers.exp_RK, weight_KD)
        self.exp_weight_BD += exp_weight_RD[:num_rows]
        if self._outputs.has_base:
            self.exp_weight_BD.addcmul_(base_B[:, None], exp_weight_RD[num_rows])
        if self._outputs.sum_logits:
            self.weight_sum_D += exp_weight_RD[num_rows]
        if buffers.moment_BK is not None:
            self.moment_weight_BD += matmul_float32(buffers.moment_BK, weight_KD)


def forward_pass(operands: Operands, plan: SlabPlan, outputs: PassOutputs, tiles: TileConfig) -> list[Tensor]:
    """Statistics of every row, its products, and the exponentials to be kept, as `triton_loss` returns them."""
    features_BD = operands.features_BD
    reference = launch.row_shifts(operands.narrow(0, FIRST_CLASSES).cast(features_BD), outputs.has_base)
    if outputs.products and outputs.moments:
        no_base = reference._replace(base_B=reference.base_B[:0])
        statistics = _forward_slabs(
            operands, no_base, SlabPlan(1, 0, len(features_BD)), PassOutputs(False, False, False), tiles
        )
        reference = _exact_shifts(reference, largest_B=torch.maximum(*statistics[0][-2:]))
    return _forward_slabs(operands, reference, plan, outputs, tiles)


def _exact_shifts(guess: ExpReference, largest_B: Tensor) -> ExpReference:
    """Replace the guessed shifts by the rows' largest logits, unless the whole row is near chance."""
    is_flat_B = (guess.base_B > 0) & (largest_B - guess.shift_B <= 1)
    largest_B = torch.where(largest_B == -torch.inf, 0.0, largest_B)
    return ExpReference(torch.where(is_flat_B, guess.shift_B, largest_B), is_flat_B.to(guess.base_B.dtype))


def _forward_slabs(
    operands: Operands, reference: ExpReference, plan: SlabPlan, outputs: PassOutputs, tiles: TileConfig
) -> list[Tensor]:
    features_BD, num_classes = operands.features_BD, len(operands.weight_KD)
    num_rows, itemsize = len(features_BD), features_BD.dtype.itemsize
    statistic = reference.shift_B.new_empty
    state_SB, label_stats_FB = statistic(NUM_STATE, num_rows), statistic(len(operands.labels_LB) + 2, num_rows)
    label_stats_FB.fill_(-torch.inf)
    shift_CB, base_CB = statistic(plan.num_slabs, num_rows), statistic(plan.num_slabs, len(reference.base_B))
    ranges = slab_ranges(plan.num_slabs, num_rows, num_classes, itemsize)
    kept_RK = features_BD.new_empty(plan.buffer_rows, plan.buffer_classes)
    scratch = _Scratch(features_BD, plan, outputs, ranges)
    sums = _FeatureSums(features_BD, outputs)
    for number, (start, stop) in enumerate(ranges):
        slab = operands.narrow(start, stop).cast(features_BD)
        buffers = scratch.buffers(kept_RK, start, stop)
        statistics = launch.allocate_statistics(slab, tiles, outputs, label_stats_FB)
        launch.class_tiles(slab, reference, buffers, tiles, statistics)
        old_lift_B = state_SB[0].clone() if number else None
        launch.merge_tiles(slab, reference.shift_B, statistics, (state_SB, shift_CB[number]), tiles, number == 0)
        if outputs.has_base:
            base_CB[number] = reference.base_B * torch.exp2(-state_SB[0])
        if buffers.exp_RK is not None:
            launch.align_tiles(buffers, reference, statistics, state_SB[0], stop - start, tiles)
        if outputs.products:
            if old_lift_B is not None:
                sums.rescale(old_lift_B - state_SB[0])
            sums.add(buffers, base_CB[number], slab.weight_KD)
    products = [sums.exp_weight_BD, sums.moment_weight_BD, sums.weight_sum_D]
    return [state_SB, label_stats_FB, *products, kept_RK, shift_CB, base_CB]


class _Scratch:
    """Scratch buffers: exponentials of the slabs that are not kept, and moments."""

    def __init__(
        self, features_BD: Tensor, plan: SlabPlan, outputs: PassOutputs, ranges: list[tuple[int, int]]
    ) -> None:
        self._num_kept = plan.num_kept
        num_rows, num_classes = len(features_BD), ranges[-1][1]
        width = pad_classes(ranges[0][1])
        spare = outputs.products and plan.num_kept < num_classes
        self._exp_RK = features_BD.new_empty(plan.buffer_rows, width) if spare else None
        with_moments = outputs.products and outputs.moments
        self._moment_BK = features_BD.new_empty(num_rows, width) if with_moments else None

    def buffers(self, kept_RK: Tensor, start: int, stop: int) -> SlabBuffers:
        """Where the slab's exponentials and moments go."""
        moment_BK = None if self._moment_BK is None else self._moment_BK[:, : stop - start]
        if stop <= self._num_kept:
            return SlabBuffers(kept_RK[:, start:stop], moment_BK)
        return SlabBuffers(None if self._exp_RK is None else self._exp_RK[:, : stop - start], moment_BK)


class ClassGradients(NamedTuple):
    """Output buffers of the gradients; empty where they are not wanted."""

    weight_KD: Tensor
    bias_K: Tensor


def backward_pass(
    operands: Operands, exponentials: Exponentials, gradient: LogitGradient, gradients: ClassGradients
) -> None:
    """Write the gradients of weight and bias, from the exponentials that were kept and others computed again."""
    kept_RK, shift_CB, base_CB = exponentials
    assert base_CB is not None
    given_BD = launch.with_dense_rows(operands.features_BD)
    features_BD = given_BD.to(kept_RK.dtype)
    num_rows, num_classes = len(features_BD), len(operands.weight_KD)
    ranges = slab_ranges(len(shift_CB), num_rows, num_classes, kept_RK.element_size())
    scratch_RK = kept_RK.new_empty(0)
    tiles = launch.tiles_for(operands, has_base=base_CB.numel() > 0)
    for number, (start, stop) in enumerate(ranges):
        if stop <= kept_RK.shape[1]:
            exp_RK = kept_RK[:, start:stop]
        else:
            if not len(scratch_RK):
                scratch_RK = kept_RK.new_empty(len(kept_RK), pad_classes(stop - start))
            exp_RK = scratch_RK[:, : stop - start]
            slab = operands.narrow(start, stop).cast(features_BD)
            reference = ExpReference(shift_CB[number], base_CB[number])
            launch.class_tiles(slab, reference, SlabBuffers(exp_RK), tiles)
        scaled = _ScaledFeatures(given_BD, gradient.scale_CB[number], base_CB[number])
        terms = LabelTerms(operands.labels_LB, gradient.label_LB, operands.start + start)
        if len(gradients.weight_KD):
            _write_weight_gradient(gradients.weight_KD[start:stop], exp_RK, scaled, terms)
        if len(gradients.bias_K):
            launch.class_sums(gradients.bias_K[start:stop], exp_RK, scaled.base_B, scaled.scale_B, terms)


class _ScaledFeatures(NamedTuple):
    """The features x, and the scale v of each row's exponentials in V = Eᵀ(v∘x)."""

    features_BD: Tensor
    scale_B: Tensor
    base_B: Tensor

    def operand(self, exp_RK: Tensor) -> tuple[Tensor, Tensor | None]:
        """v∘x in the dtype of the exponentials, and a factor of the product: None where it is 1.

        float16 has too few exponents for v, whose size is that of 1/K times the upstream gradient: a power of two is
        taken out. With bases Σ base·v·x is the same for every class; it meets the two rows of ones, in two parts that
        together have twice the digits.
        """
        factor = None
        scaled_BD = self.features_BD.float() * self.scale_B[:, None]
        if exp_RK.dtype == torch.float16:
            largest = self.scale_B.abs().amax()
            factor = torch.where(largest > 0, torch.exp2(torch.ceil(torch.log2(largest))), 1.0)
            scaled_BD = scaled_BD / factor
        if not len(self.base_B):
            return scaled_BD.to(exp_RK.dtype), factor
        num_rows, num_features = scaled_BD.shape
        scaled_RD = exp_RK.new_zeros(len(exp_RK), num_features)
        common_D = (scaled_BD * self.base_B[:, None]).sum(0)
        scaled_RD[:num_rows] = scaled_BD
        scaled_RD[num_rows] = common_D
        scaled_RD[num_rows + 1] = common_D - scaled_RD[num_rows].float()
        return scaled_RD, factor


def _write_weight_gradient(out_KD: Tensor, exp_RK: Tensor, scaled: _ScaledFeatures, terms: LabelTerms) -> None:
    """V = Eᵀ(v∘x), then the labels' rows in float32; each row is rounded once, also to a narrow dtype."""
    scaled_RD, factor = scaled.operand(exp_RK)
    sums_ND = None
    if out_KD.dtype != torch.float32:
        column_N = (terms.labels_LB.flatten() - terms.start).clamp(0, len(out_KD) - 1)
        sums_ND = matmul_float32(exp_RK.index_select(1, column_N).T, scaled_RD)
        sums_ND = sums_ND if factor is None else sums_ND * factor
    if factor is None:
        matmul_into(out_KD, exp_RK.T, scaled_RD)
    else:
        for columns_RK, rows_KD in zip(exp_RK.split(SLAB_ROUNDING, 1), out_KD.split(SLAB_ROUNDING), strict=True):
            rows_KD.copy_(matmul_float32(columns_RK.T, scaled_RD) * factor)
    launch.add_label_rows(out_KD, sums_ND, scaled.features_BD, terms)
