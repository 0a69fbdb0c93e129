"""Optimizer's steps where the gradient is made, on a real CUDA device."""

import pytest
import torch
import triton_updates
from device_waits import no_device_waits
from triton_updates import RULES, Head, UpdateCase, states_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="runs Triton kernels on a CUDA device, and there is none"),
]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
LARGE = UpdateCase(128, 100_000, 768, "adamw", BF16, device="cuda")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("shape", [(64, 2000, 192), (300, 1003, 75)], ids=str)
def test_twenty_steps_are_the_optimizers(rule: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    for slabs in (False, True):
        case = UpdateCase(*shape, rule, dtype, pair=slabs, regularizer="uniform", slabs=slabs, steps=20, device="cuda")
        triton_updates.assert_steps_are_the_optimizers(case)


def test_a_hundred_thousand_labels() -> None:
    triton_updates.assert_steps_are_the_optimizers(LARGE)


def test_what_is_left_out_or_pending() -> None:
    triton_updates.assert_a_step_that_is_left_out_changes_nothing("cuda")
    triton_updates.assert_pending_updates_are_separate_ones("cuda")


@pytest.mark.parametrize("rule", ["adamw", "momentum"])
def test_nothing_waits_and_nothing_is_as_large_as_the_weight(rule: str) -> None:
    """Nor does the next forward pass cast; two steps from the same place give the same bits."""
    head, step = Head(LARGE), RULES[rule]
    never = torch.zeros((), dtype=torch.bool, device="cuda")
    head.backward().update(step, states_of(step, head.weight_KD), never)  # compiles
    before_KD, gradient, found = head.weight_KD.detach().clone(), head.backward(), []
    for _ in range(2):
        with torch.no_grad():
            head.weight_KD.copy_(before_KD)
        head.kept.renew(head.weight_KD)
        states = states_of(step, head.weight_KD)
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with no_device_waits():
            gradient.survey()
            gradient.update(step, states, never)
        assert torch.cuda.max_memory_allocated() - held <= 0.05 * head.weight_KD.nbytes
        found.append(head.weight_KD.detach().clone())
    assert torch.equal(*found)
    assert head.kept.copy_of(head.weight_KD, BF16) is not None
