"""Several heads in the same launches under Triton's interpreter: values, gradients, and how much is launched."""

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with torch's CUDA build only")

import many_heads
from many_heads import ManyHeads
from triton_interpreter import Interpreter

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

CASES = [
    ManyHeads((16, 16, 16), 5, 300, "uniform"),
    ManyHeads((16, 0, 16, 0), 5, 40, "unlikelihood", seed=2),
    ManyHeads((16, 0, 0), 5, 300, "entropy", seed=1),
    ManyHeads((16, 24, 24, 16), 5, 40, "uniform", FP32),
    ManyHeads((16, 16, 0, 24), 5, 40, "unlikelihood", FP16),
    ManyHeads((16, 16), 5, 300, "entropy", FP32, seed=6),
]

DEGENERATE = [
    *(ManyHeads((16, 16, 0), rows, 40, "entropy", FP32, seed) for rows in (1, 2) for seed in (0, 2)),
    *(ManyHeads((16,), rows, 300, "uniform", FP32, seed=3) for rows in (1, 2)),
    *(ManyHeads((1, 1), rows, 2, "unlikelihood", FP32, seed=3) for rows in (1, 2)),
]
"""Pairs with seeds 0 and 3."""


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=str)
def test_heads_as_in_float64(interpreter: Interpreter, case: ManyHeads) -> None:
    interpreter(many_heads.assert_heads_as_in_float64, case)


@pytest.mark.parametrize("case", DEGENERATE, ids=str)
@pytest.mark.parametrize("impl", ["triton", "batched"])
def test_where_views_of_one_row_or_feature_lie_otherwise(interpreter: Interpreter, case: ManyHeads, impl: str) -> None:
    """A view of size 1 in some dimension is contiguous, or not, by other rules than all the rest."""
    interpreter(many_heads.assert_heads_as_in_float64, case, impl)


def test_operands_of_any_strides(interpreter: Interpreter) -> None:
    interpreter(many_heads.assert_any_strides_give_the_same)


@pytest.mark.parametrize("case", [*CASES[1:2], *CASES[3:]], ids=str)
def test_heads_of_few_labels_as_in_float64(interpreter: Interpreter, case: ManyHeads) -> None:
    """Written out by one batched product, and finished by one kernel."""
    interpreter(many_heads.assert_heads_as_in_float64, case, "batched")


@pytest.mark.long
def test_heads_need_not_require_gradients(interpreter: Interpreter) -> None:
    interpreter(many_heads.assert_heads_need_not_require_gradients)


def test_heads_share_launches_as_far_as_memory_allows() -> None:
    assert many_heads.group_sizes(12, 128, 768, 10_000, None) == [12]
    assert many_heads.group_sizes(12, 128, 768, 10_000, "uniform") == [12]
    assert many_heads.group_sizes(4, 128, 768, 100_000, "uniform") == [1] * 4
    assert many_heads.group_sizes(3, 1024, 768, 1_000_000, None) == [1] * 3
