"""Optimizer's steps where the gradient is made, by the Triton kernels under Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with torch's CUDA build only")

import triton_updates
from triton_interpreter import Interpreter
from triton_updates import UpdateCase

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

CASES = [
    UpdateCase(5, 70, 20),
    UpdateCase(9, 200, 70, "adam", pair=True),
    UpdateCase(5, 70, 20, "sgd", bias=False),
    UpdateCase(70, 70, 20, "momentum", BF16),
    UpdateCase(5, 70, 20, "nesterov", BF16, pair=True, regularizer="uniform"),
    UpdateCase(7, 70, 20, "adamw", FP16),
    UpdateCase(5, 300, 20, "adamw", BF16, slabs=True),
    UpdateCase(5, 300, 20, "adamw", FP32, pair=True, regularizer="entropy", slabs=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_are_the_optimizers(interpreter: Interpreter, case: UpdateCase) -> None:
    interpreter(triton_updates.assert_steps_are_the_optimizers, case)


TWENTY = [("adamw", BF16), ("adam", FP32), ("nesterov", FP32)]


@pytest.mark.long
@pytest.mark.parametrize(("rule", "dtype"), TWENTY, ids=str)
def test_twenty_steps_are_the_optimizers(interpreter: Interpreter, rule: str, dtype: torch.dtype) -> None:
    interpreter(triton_updates.assert_steps_are_the_optimizers, UpdateCase(5, 70, 20, rule, dtype, steps=20))


@pytest.mark.slow
@pytest.mark.parametrize("rule", triton_updates.RULES)
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_twenty_steps_of_every_rule(interpreter: Interpreter, rule: str, dtype: torch.dtype) -> None:
    case = UpdateCase(9, 200, 70, rule, dtype, pair=True, regularizer="uniform", steps=20)
    interpreter(triton_updates.assert_steps_are_the_optimizers, case)


def test_a_step_that_is_left_out_changes_nothing(interpreter: Interpreter) -> None:
    interpreter(triton_updates.assert_a_step_that_is_left_out_changes_nothing)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_shows_in_the_norm(interpreter: Interpreter, value: float) -> None:
    interpreter(triton_updates.assert_a_row_that_is_not_finite_shows, value)


def test_counts_of_steps_lose_no_digits(interpreter: Interpreter) -> None:
    interpreter(triton_updates.assert_counts_of_steps_lose_no_digits)


def test_pending_updates_are_separate_ones(interpreter: Interpreter) -> None:
    interpreter(triton_updates.assert_pending_updates_are_separate_ones)
    interpreter(triton_updates.assert_pending_updates_are_separate_ones, "cpu", BF16)
