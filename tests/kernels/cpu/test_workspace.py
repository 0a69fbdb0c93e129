"""Buffers come back when nothing refers to them any more, and never before."""

import gc

import pytest
import torch
from kernel_problems import evaluate, make_problem

from rlpheads.kernels.cpu import workspace
from rlpheads.kernels.cpu.workspace import MAX_MISSES, MIN_BYTES, Workspace
from rlpheads.kernels.random_label_loss import random_label_loss

SIZE = (MIN_BYTES,)


@pytest.mark.long
def test_a_freed_buffer_is_used_again() -> None:
    pool = Workspace()
    first = pool.empty(SIZE, torch.float32)
    address = first.data_ptr()
    del first
    gc.collect()
    assert pool.free_bytes == 4 * MIN_BYTES
    assert pool.empty((MIN_BYTES // 4, 4), torch.float32).data_ptr() == address


@pytest.mark.long
def test_living_tensors_share_nothing() -> None:
    pool = Workspace()
    kept = pool.empty(SIZE, torch.float32).fill_(1.0)
    part = kept[10:20]
    del kept  # a view keeps the whole buffer
    gc.collect()
    pool.empty(SIZE, torch.float32).fill_(2.0)
    assert part.tolist() == [1.0] * 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_and_dtype_are_those_asked_for(dtype: torch.dtype) -> None:
    for shape in ((3, MIN_BYTES), (2, 3), (0, 5)):
        tensor = Workspace().empty(shape, dtype)
        assert (tuple(tensor.shape), tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)


def test_a_buffer_that_nobody_asks_for_is_given_back() -> None:
    pool = Workspace()
    pool.empty((8 * MIN_BYTES,), torch.float32)
    assert pool.free_bytes
    held = [pool.empty(SIZE, torch.float32) for _ in range(MAX_MISSES)]
    assert pool.free_bytes == 0
    del held


@pytest.mark.long
def test_a_step_uses_the_last_steps_memory_for_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the gradient is the parameter's own: autograd takes it without a copy."""
    pool = Workspace()
    monkeypatch.setattr("rlpheads.kernels.cpu.tiled_cpu.WORKSPACE", pool)
    problem = make_problem(2, 4, 70_000, num_features=8).to(torch.float32)
    weight_KD = problem.weight_KD.requires_grad_()
    addresses, expected = [], evaluate(problem, None, "tiled_cpu")["weight_gradient"]
    for _ in range(3):
        weight_KD.grad = None
        gc.collect()
        random_label_loss(
            problem.features_BD, weight_KD, problem.labels_B, impl="tiled_cpu"
        ).cross_entropy_B.sum().backward()
        addresses.append(weight_KD.grad.data_ptr())
        assert torch.equal(weight_KD.grad, expected)
    assert addresses[1] == addresses[2]
    assert workspace.WORKSPACE is not pool
