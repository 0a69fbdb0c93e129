"""The gradient of a head's weight used up tile by tile on a CUDA GPU: it is made in registers, and never lies in memory.

The optimizer's step is taken where a tile of the gradient is made, for float32 weights and states; a copy of the weight in
the products' dtype is written in the same pass, so that the next forward pass casts nothing. The squared norm comes of the
same tiles. Where a step depends on the norm (clipping), the gradient is surveyed before, by one matrix product more, whose
result goes nowhere. A step that is left out changes nothing: that is read on the device, and the host waits for nothing.

Each head has launches of its own: their number counts where heads have few classes, and a step in tiles where they have many.
"""

import torch
from torch import Tensor

from rlpheads.kernels.gpu.triton_loss import HeadsInMemory, operands_of, unsupported_reason
from rlpheads.kernels.rows.partials import ClassRange, Exponentials, LogitGradient
from rlpheads.kernels.rows.updates import AdamRule, UpdateRule, rule_of


def serves(features_BD: Tensor, weight_KD: Tensor) -> bool:
    """Whether Triton runs here, and serves heads like this."""
    return (
        unsupported_reason(features_BD) is None
        and weight_KD.dtype == torch.float32
        and weight_KD.is_contiguous()
        and len(features_BD) > 0
    )


def survey(
    features_BD: Tensor, head: ClassRange, labels_LB: Tensor, exponentials: Exponentials, gradient: LogitGradient
) -> tuple[Tensor, Tensor]:
    """See `rlpheads.kernels.rows.updates.Updates`."""
    found: tuple[Tensor, Tensor] = _survey_op(
        features_BD, head.weight_KD, head.bias_K, labels_LB, head.start, *exponentials, *gradient
    )
    return found


def update(
    features_BD: Tensor,
    head: ClassRange,
    labels_LB: Tensor,
    exponentials: Exponentials,
    gradient: LogitGradient,
    rule: UpdateRule,
    states: list[Tensor],
    left_out: Tensor,
    copy_KD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `rlpheads.kernels.rows.updates.Updates`."""
    found: tuple[Tensor, Tensor] = _update_op(
        features_BD,
        head.weight_KD,
        head.bias_K,
        labels_LB,
        head.start,
        *exponentials,
        *gradient,
        states,
        left_out,
        copy_KD,
        isinstance(rule, AdamRule),
        [float(number) for number in rule],
    )
    return found


@torch.library.custom_op("rlpheads::triton_survey", mutates_args=(), device_types=("cpu", "cuda"))
def _survey_op(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    kept_BK: Tensor,
    shift_CB: Tensor,
    base_CB: Tensor | None,
    scale_CB: Tensor,
    label_LB: Tensor,
) -> tuple[Tensor, Tensor]:
    from rlpheads.kernels.gpu.triton_update_launch import update_pass

    head = operands_of(HeadsInMemory(features_BD, weight_KD, bias_K, labels_LB, start))
    gradient = LogitGradient(scale_CB.contiguous(), label_LB.contiguous())
    return update_pass(head, Exponentials(kept_BK, shift_CB, base_CB), gradient, None)


@_survey_op.register_fake
def _(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    kept_BK: Tensor,
    shift_CB: Tensor,
    base_CB: Tensor | None,
    scale_CB: Tensor,
    label_LB: Tensor,
) -> tuple[Tensor, Tensor]:
    return weight_KD.new_empty(len(weight_KD)), weight_KD.new_empty((), dtype=torch.float64)


@torch.library.custom_op(
    "rlpheads::triton_update", mutates_args=("weight_KD", "states", "copy_KD"), device_types=("cpu", "cuda")
)
def _update_op(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    kept_BK: Tensor,
    shift_CB: Tensor,
    base_CB: Tensor | None,
    scale_CB: Tensor,
    label_LB: Tensor,
    states: list[Tensor],
    left_out: Tensor,
    copy_KD: Tensor | None,
    is_adam: bool,
    numbers: list[float],
) -> tuple[Tensor, Tensor]:
    from rlpheads.kernels.gpu.triton_update_launch import WeightStep, count_step, update_pass

    rule, read_KD = rule_of(is_adam, numbers), weight_KD if copy_KD is None else copy_KD
    head = operands_of(HeadsInMemory(features_BD, read_KD, bias_K, labels_LB, start))
    gradient = LogitGradient(scale_CB.contiguous(), label_LB.contiguous())
    rates = count_step(rule, states[2], left_out) if isinstance(rule, AdamRule) else None
    step = WeightStep(rule, weight_KD, tuple(states[:2]), copy_KD, rates, left_out)
    return update_pass(head, Exponentials(kept_BK, shift_CB, base_CB), gradient, step)


@_update_op.register_fake
def _(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    kept_BK: Tensor,
    shift_CB: Tensor,
    base_CB: Tensor | None,
    scale_CB: Tensor,
    label_LB: Tensor,
    states: list[Tensor],
    left_out: Tensor,
    copy_KD: Tensor | None,
    is_adam: bool,
    numbers: list[float],
) -> tuple[Tensor, Tensor]:
    return weight_KD.new_empty(len(weight_KD)), weight_KD.new_empty((), dtype=torch.float64)
