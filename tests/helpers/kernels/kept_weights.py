"""Weights kept in the dtype of the products from call to call; runs in the interpreter's process, as `triton_cases` does."""

import copy
import pickle

import torch
from kernel_problems import make_problem
from launch_counter import counted
from torch import Tensor

from rlpheads.kernels.gpu.heads.kept_operands import KeptOperands
from rlpheads.kernels.loss_results import RandomLabelLoss
from rlpheads.kernels.random_label_loss import random_label_losses


def assert_a_version_is_cast_once(num_heads: int) -> None:
    """Again after an optimizer's step and after the weight's storage is another; each time with the same losses as without."""
    problems = [make_problem(1 + 6 * n, 6, 40, num_features=16).to(torch.float32) for n in range(num_heads)]
    features = [problem.features_BD.bfloat16() for problem in problems]
    weights = [torch.nn.Parameter(problem.weight_KD) for problem in problems]
    kept = KeptOperands()

    def losses(given: KeptOperands | None) -> list[RandomLabelLoss]:
        labels = [problem.labels_B for problem in problems]
        return random_label_losses(features, weights, labels, impl="triton", kept=given).by_head()

    def casts() -> int:
        with counted() as launches:
            found = losses(kept)
        for one, two in zip(found, losses(None), strict=True):
            assert torch.equal(one.cross_entropy_B, two.cross_entropy_B)
        return launches.aten["_foreach_copy_"] + launches.aten["to"]

    assert [casts() for _ in range(3)] == [1, 0, 0]
    sum(loss.cross_entropy_B.sum() for loss in losses(kept)).backward()  # type: ignore[union-attr]
    for kind in (torch.optim.AdamW, torch.optim.SGD):
        for fused in (False, True):  # torch's fused steps leave the version counter as it is
            kind(weights, lr=0.1, fused=fused).step()
            assert [casts(), casts()] == [1, 0]
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1, fused=True).step()
    assert casts() == 0
    weights[-1].data = weights[-1].data + 1
    assert [casts(), casts()] == [1, 0]
    weights[0].data.add_(1)  # behind the counter's back
    kept.forget()
    assert [casts(), casts()] == [1, 0]


def assert_copies_keep_nothing() -> None:
    """Nor is more than one copy of a weight kept, nor a fake one, nor a dead weight taken for a new one."""
    weights = [torch.randn(4, 3) for _ in range(3)]
    kept = KeptOperands()
    whole_KD = kept.stack(weights, torch.bfloat16)
    for other in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert other._stacks == []
    kept.stack(weights[:2], torch.bfloat16)
    assert len(kept._stacks) == 1
    assert kept.stack(weights, torch.bfloat16) is not whole_KD
    kept.stack(weights[2:], torch.float16)
    values = [_stack_of_its_own(kept) for _ in range(50)]
    assert all(torch.equal(found, wanted) for found, wanted in values)


def _stack_of_its_own(kept: KeptOperands) -> tuple[Tensor, Tensor]:
    weight_KD = torch.randn(4, 3)
    return kept.stack([weight_KD], torch.bfloat16), weight_KD.bfloat16()
