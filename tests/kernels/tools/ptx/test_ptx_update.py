"""Optimizer's steps in tiles on the PTX that Triton compiles for three chips, against torch's own in float64."""

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with torch's CUDA build only")

from ptx_updates import Launch, assert_steps
from triton_updates import RULES

from rlpheads.kernels.gpu.triton_tiles import KNOWN_CHIPS

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
QUICK = [
    Launch(80, True, (300, 64, 80), "adamw", BF16, pair=True),
    Launch(80, False, (7, 70, 20), "nesterov", FP32, left_out=(False, True, False)),
    Launch(90, True, (300, 75, 64), "adamw", BF16, pair=True),
    Launch(90, False, (7, 70, 20), "momentum", FP16, left_out=(False, True, False)),
    Launch(100, True, (300, 64, 80), "adamw", BF16, pair=True),
]
"""Of many rows each buffer of a pipeline is used twice."""


@pytest.mark.long
@pytest.mark.parametrize("launch", QUICK, ids=str)
def test_steps_on_each_chip(launch: Launch) -> None:
    """Each launch writes what Triton's interpreter writes."""
    assert_steps(launch, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("chip", KNOWN_CHIPS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("shape", [(140, 272, 140), (130, 139, 75)], ids=str)
def test_every_step_on_each_chip(chip: int, rule: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    for late in (True, False):
        assert_steps(Launch(chip, late, shape, rule, dtype, late, (False, True, False)), seed=2)
