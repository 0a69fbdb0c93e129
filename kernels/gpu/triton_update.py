"""The gradient of a head's weight used up tile by tile on a CUDA GPU: it is made in registers, and never lies in memory.

The optimizer's step is taken where a tile of the gradient is made, for float32 weights and states; a copy of the weight in
the products' dtype is written in the same pass, so that the next forward pass casts nothing. The squared norm comes of the
same tiles. Where a step depends on the norm (clipping), the gradient is surveyed before, by one matrix product more, whose
result goes nowhere. A step that is left out changes nothing: that is read on the device, and the host waits for nothing.

Each head has launches of its own: their number counts where heads have few classes, and a step in tiles where they have many.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlpheads.kernels.gpu.triton_loss import HeadsInMemory, operands_of, unsupported_reason
from rlpheads.kernels.operators import register_named_operator
from rlpheads.kernels.rows.updates import (
    CHANGED_BY_UPDATE,
    AdamRule,
    SurveyArguments,
    UpdateArguments,
    shape_of_survey,
    shape_of_update,
)

if TYPE_CHECKING:
    from rlpheads.kernels.gpu.triton_launch import Operands


def serves(features_BD: Tensor, weight_KD: Tensor) -> bool:
    """Whether Triton runs here, and serves heads like this."""
    return (
        unsupported_reason(features_BD) is None
        and weight_KD.dtype == torch.float32
        and weight_KD.is_contiguous()
        and len(features_BD) > 0
    )


def _compute_survey(given: SurveyArguments) -> tuple[Tensor, Tensor]:
    from rlpheads.kernels.gpu.triton_update_launch import update_pass

    return update_pass(_operands(given, given.head.weight_KD), given.exponentials, given.gradient.contiguous(), None)


def _compute_update(given: UpdateArguments) -> tuple[Tensor, Tensor]:
    from rlpheads.kernels.gpu.triton_update_launch import WeightStep, count_step, update_pass

    of_gradient, states, left_out, copy_KD = given[:4]
    weight_KD, rule = of_gradient.head.weight_KD, given.rule
    operands = _operands(of_gradient, weight_KD if copy_KD is None else copy_KD)
    rates = count_step(rule, states[2], left_out) if isinstance(rule, AdamRule) else None
    step = WeightStep(rule, weight_KD, tuple(states[:2]), copy_KD, rates, left_out)
    return update_pass(operands, of_gradient.exponentials, of_gradient.gradient.contiguous(), step)


def _operands(given: SurveyArguments, read_KD: Tensor) -> "Operands":
    """Return the head as the launchers take it, whose products read this weight."""
    features_BD, head, labels_LB = given[:3]
    return operands_of(HeadsInMemory(features_BD, read_KD, head.bias_K, labels_LB, head.start))


survey = register_named_operator("triton_survey", _compute_survey, shape_of_survey)
"""See `rlpheads.kernels.rows.updates.Updates`."""
update = register_named_operator("triton_update", _compute_update, shape_of_update, mutated=CHANGED_BY_UPDATE)
"""See `rlpheads.kernels.rows.updates.Updates`."""
