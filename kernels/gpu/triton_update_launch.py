"""Launchers of the kernels of an optimizer's step, as in `rlpheads.kernels.gpu.triton_launch`, and the pass that they make."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from rlpheads.kernels.gpu import triton_gradient_launch as gradient_launch
from rlpheads.kernels.gpu import triton_update_kernels as kernels
from rlpheads.kernels.gpu.checked_launch import Strided, launch_kernel
from rlpheads.kernels.gpu.triton_gradient_launch import SortedLabels
from rlpheads.kernels.gpu.triton_launch import EMULATED, Operands, matmul_precision
from rlpheads.kernels.gpu.triton_passes import GradientSlab, gradient_slabs, scaled_features
from rlpheads.kernels.rows.partials import Exponentials, LogitGradient
from rlpheads.kernels.rows.updates import AdamRule, SgdRule, UpdateRule

UPDATE_TILE = {"CLASSES": 64, "FEATURES": 64, "LABELS": 256, "num_warps": 8, "num_stages": 3}
"""Larger tiles spill where rows start at no multiple of 16 bytes: weight and states lie in registers beside the gradient."""


def update_tile(dtype: torch.dtype) -> dict[str, int]:
    """Tile and compile options for a dtype of the operands; of float32 64 rows spill on sm_80."""
    return {"ROWS": 32 if dtype == torch.float32 else 64, **UPDATE_TILE}


class WeightStep(NamedTuple):
    """What an optimizer's step changes, and how; slices of it are those of the classes."""

    rule: UpdateRule
    weight_KD: Tensor
    states: tuple[Tensor, ...]
    """As large as the weight."""
    copy_KD: Tensor | None
    """The weight in the products' dtype."""
    rates: Tensor | None
    """Adam's two numbers that depend on the count of steps (2,), see `count_step`."""
    left_out: Tensor

    def of(self, classes: slice) -> "WeightStep":
        """The step of some classes."""
        states = tuple(state_KD[classes] for state_KD in self.states)
        copy_KD = None if self.copy_KD is None else self.copy_KD[classes]
        return self._replace(weight_KD=self.weight_KD[classes], states=states, copy_KD=copy_KD)


def count_step(rule: AdamRule, step: Tensor, left_out: Tensor) -> Tensor:
    """Count a step, unless it is left out; return lr/(1 − β1^n) and 1/√(1 − β2^n) of their number n, (2,)."""
    rates = step.new_empty(2)
    numbers = rule.lr, 1 - rule.beta1, 1 - rule.beta2
    launch_kernel(kernels.count_step_kernel, (1,), step, rates, left_out, *numbers, num_warps=1)
    return rates


def update_pass(
    operands: Operands, exponentials: Exponentials, gradient: LogitGradient, step: WeightStep | None
) -> tuple[Tensor, Tensor]:
    """Return the gradient of a head's bias (K,) and the squared norm of its weight's, float64 (); with `step` take that.

    A slab is stepped before the exponentials of the next are computed, from other classes.
    """
    bias_gradient_K = exponentials.tile_shift_CB.new_empty(operands.num_classes)
    squared = []
    ordered = SortedLabels.of(operands)
    for slab in gradient_slabs(operands, exponentials, gradient):
        gradient_launch.class_sums(bias_gradient_K[slab.classes], slab.operands, slab.rows)
        squared.append(update_tiles(slab, ordered, None if step is None else step.of(slab.classes)))
    return bias_gradient_K, squared[0] if len(squared) == 1 else torch.stack(squared).sum()


def update_tiles(slab: GradientSlab, ordered: SortedLabels, step: WeightStep | None) -> Tensor:
    """Take the step of a slab's classes, if there is one; return the squared norm of their gradient, float64 ()."""
    _, operands, rows = slab
    num_features = operands.features_RD.shape[1]
    scaled_RD, factor_H = scaled_features(operands, rows)
    tiles = [
        triton.cdiv(size, UPDATE_TILE[name])
        for size, name in ((operands.num_classes, "CLASSES"), (num_features, "FEATURES"))
    ]
    squared_T = rows.scale_R.new_empty(tiles[0] * tiles[1])
    weight_KD, first_KD, second_KD, copy_KD, rates, left_out = _arrays(step)
    launch_kernel(
        kernels.update_tiles_kernel,
        (len(squared_T),),
        *(weight_KD, first_KD, second_KD, copy_KD, squared_T, Strided(rows.exp_RK), scaled_RD, factor_H),
        *(Strided(operands.features_RD), *ordered, rows.label_LR, rates, left_out, *_numbers(step)),
        *(operands.num_rows, rows.num_kept_rows(operands), ordered.labels_HN.shape[1], operands.num_classes),
        *(num_features, operands.start, operands.features_RD.stride(0), rows.exp_RK.stride(0)),
        STEP=step is not None,
        ADAM=rates is not None,
        MOMENTUM=first_KD is not None and rates is None,
        NESTEROV=step is not None and isinstance(step.rule, SgdRule) and bool(step.rule.nesterov),
        COPY=copy_KD is not None,
        HAS_FACTOR=factor_H is not None,
        PRECISION=matmul_precision(rows.exp_RK.dtype),
        EMULATED=EMULATED,
        **update_tile(rows.exp_RK.dtype),
    )
    return squared_T.sum(dtype=torch.float64)


def _arrays(step: WeightStep | None) -> tuple[Any, ...]:
    if step is None:
        return (None,) * 6
    first_KD, second_KD = (*step.states, None, None)[:2]
    return step.weight_KD, first_KD, second_KD, step.copy_KD, step.rates, step.left_out


def _numbers(step: WeightStep | None) -> tuple[float, ...]:
    """Rate, keep, l2, eps, then decay and share of the first state, and of the second."""
    if step is None:
        return (0.0,) * 8
    rule = step.rule
    if isinstance(rule, SgdRule):
        return rule.lr, 1.0, rule.weight_decay, 0.0, rule.momentum, 1.0, 0.0, 0.0
    # 1 - 0.999 in float32 would be off by 1.3e-5
    return 0.0, rule.keep, rule.l2, rule.eps, rule.beta1, 1 - rule.beta1, rule.beta2, 1 - rule.beta2
