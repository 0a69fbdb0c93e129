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


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=str)
def test_heads_as_in_float64(interpreter: Interpreter, case: ManyHeads) -> None:
    interpreter(many_heads.assert_heads_as_in_float64, case)


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
