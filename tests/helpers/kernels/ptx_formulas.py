"""What single kernels must write, in float64, whatever the loss makes of it: a wrong shift or a cut bit would pass there."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from rlpheads.kernels.tools.ptx.launch import Executor

DIGITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}
NEAR_ONE = 1.0
"""Spread of a row's first logits below which it counts as flat."""


@dataclass
class CheckedExecutor(Executor):
    """Compares the shifts and the exponentials with their formulas as soon as they are written."""

    def run(self, kernel: Any, *arguments: Any, grid: tuple[int, ...], **options: Any) -> None:
        super().run(kernel, *arguments, grid=grid, **options)
        named = dict(zip(kernel.arg_names, arguments, strict=False)) | options
        if kernel.__name__ == "row_shifts_kernel":
            check_shifts(named)
        elif kernel.__name__ == "class_tiles_kernel":
            check_exponentials(named)


def _matrix(argument: Tensor | TensorDescriptor, tf32: bool) -> Tensor:
    matrix = argument.base if isinstance(argument, TensorDescriptor) else argument
    return ((matrix.view(torch.int32) & -0x2000).view(torch.float32) if tf32 else matrix).double()


def logits(named: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Exact logits of the range, and where they belong to a label of their row."""
    first = named["features"].base if isinstance(named["features"], TensorDescriptor) else named["features"]
    tf32 = first.dtype == torch.float32 and named["PRECISION"] == "tf32"
    x_BD, w_KD = _matrix(named["features"], tf32), _matrix(named["weight"], tf32)[: named["num_classes"]]
    z_BK = x_BD @ w_KD.T + (named["bias"][: len(w_KD)].double() if named["HAS_BIAS"] else 0)
    labels_LB = named["labels"].view(-1, len(x_BD)) - named["start"]
    return z_BK, (torch.arange(len(w_KD)) == labels_LB[:, :, None]).any(0)


def check_shifts(named: dict[str, Any]) -> None:
    """The largest logit but the labels'; of flat rows log-mean-exp."""
    z_BK, is_label_BK = logits(named)
    others_BK = z_BK.masked_fill(is_label_BK, -torch.inf)
    num_others_B = (~is_label_BK).sum(1)
    shift_B = others_BK.amax(1)
    if named["HAS_BASE"]:
        spread_B = shift_B - z_BK.masked_fill(is_label_BK, torch.inf).amin(1)
        sure_B = (spread_B - NEAR_ONE).abs() > 1e-3
        is_flat_B = (spread_B <= NEAR_ONE) & (num_others_B > 0)
        assert torch.equal(named["base"][sure_B], is_flat_B[sure_B].float()), "bases"
        shift_B = torch.where(named["base"] > 0, others_BK.logsumexp(1) - num_others_B.double().log(), shift_B)
    shift_B = torch.where(num_others_B > 0, shift_B, 0.0)
    scale = 1 + z_BK.abs().amax(1)
    assert ((named["shift"] - shift_B).abs() <= 2e-6 * scale).all(), "shifts"


def check_exponentials(named: dict[str, Any]) -> None:
    """e^{z−s} less the base, 0 at the labels, of rows that no lift concerns; rounded to nearest once."""
    z_BK, is_label_BK = logits(named)
    offset_BK = z_BK.masked_fill(is_label_BK, -torch.inf) - named["shift"].double()[:, None]
    exact_B = (offset_BK.amax(1) < 10) & z_BK.isfinite().all(1)
    exp_BK = offset_BK.exp()
    noise_BK = 1e-6 * (1 + z_BK.abs().amax(1, keepdim=True)) * exp_BK + 1e-7
    if named["KEEP_MOMENT"]:
        moment_BK = torch.where(offset_BK.isfinite(), exp_BK * offset_BK, 0.0)
        _check_rounding(named["moments"], moment_BK, noise_BK * (1 + offset_BK.clamp(min=-50).abs()), exact_B)
    if named["KEEP"]:
        base_B1 = named["base"].double()[:, None] if named["HAS_BASE"] else 0.0
        _check_rounding(named["exps"], exp_BK - base_B1, noise_BK, exact_B)


def _check_rounding(found: Tensor, exact_BK: Tensor, noise_BK: Tensor, sure_B: Tensor) -> None:
    """Within half a unit in the last place."""
    rows, columns = exact_BK.shape
    found_BK = found[:rows, :columns].double()
    _, exponent_BK = torch.frexp(exact_BK)
    smallest = -25 if found.dtype == torch.float16 else -134
    half_BK = torch.exp2((exponent_BK - DIGITS[found.dtype] - 1).double().clamp(min=smallest))
    wrong_BK = ((found_BK - exact_BK).abs() > half_BK + noise_BK) & sure_B[:, None]
    assert not wrong_BK.any(), f"{int(wrong_BK.sum())} exponentials"
