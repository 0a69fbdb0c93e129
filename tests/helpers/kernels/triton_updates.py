"""Optimizer's steps in tiles by Triton, against torch's own on the gradient written out; runs in the interpreter's process."""

from dataclasses import dataclass
from typing import Any

import torch
from launch_counter import HOST_READS, Launches, counted
from torch import Tensor
from triton_behaviour import use_default_slabs, use_small_slabs

from rlpheads.engine.learner.optimizer import take_step
from rlpheads.engine.learner.pending_update import PendingUpdate
from rlpheads.kernels.gpu.heads.kept_operands import KeptOperands
from rlpheads.kernels.gpu.triton_update_launch import count_step
from rlpheads.kernels.head_gradient import HeadGradient
from rlpheads.kernels.random_label_loss import random_label_losses
from rlpheads.kernels.rows.updates import AdamRule, SgdRule, UpdateRule

RULES: dict[str, UpdateRule] = {
    "adamw": AdamRule(0.01, 0.1, 0.9, 0.999, 1e-4, decoupled=True),
    "adam": AdamRule(0.01, 0.1, 0.8, 0.99, 1e-4, decoupled=False),
    "sgd": SgdRule(0.1, 0.1, 0.0, nesterov=False),
    "momentum": SgdRule(0.1, 0.1, 0.9, nesterov=False),
    "nesterov": SgdRule(0.1, 0.0, 0.9, nesterov=True),
}


@dataclass(frozen=True)
class UpdateCase:
    """Steps of one head whose rows have random labels and weights."""

    rows: int
    labels: int
    dim: int
    rule: str = "adamw"
    dtype: torch.dtype = torch.float32
    pair: bool = False
    bias: bool = True
    regularizer: str | None = None
    slabs: bool = False
    """Of 128 classes, whose exponentials are computed again."""
    steps: int = 3
    device: str = "cpu"

    def __str__(self) -> str:
        kinds = [name for name in ("pair", "bias", "slabs") if getattr(self, name)]
        names = [self.rule, str(self.dtype).removeprefix("torch."), self.regularizer, *kinds]
        return f"{self.rows}x{self.labels}x{self.dim} {' '.join(filter(None, names))} {self.steps} steps"


class Head:
    """A head of a case, with its parameters and the weights that it keeps for the products."""

    def __init__(self, case: UpdateCase) -> None:
        self.case, self.kept = case, KeptOperands()
        self.generator = torch.Generator().manual_seed(case.rows + case.labels + case.dim)
        self.weight_KD = torch.nn.Parameter(self.random(case.labels, case.dim) / case.dim**0.5)
        self.bias_K = torch.nn.Parameter(self.random(case.labels)) if case.bias else None

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.case.device)

    def backward(self, scale: float = 1.0) -> HeadGradient:
        """What a backward pass over random rows hands over; the labels of some rows are equal, as are both of some pairs."""
        case, taken = self.case, list[HeadGradient]()
        labels_B, second_B = torch.randint(case.labels, (2, case.rows), generator=self.generator).to(case.device)
        labels_B[1:4], second_B[::3] = labels_B[0], labels_B[::3]
        features_BD = self.random(case.rows, case.dim).to(case.dtype).requires_grad_(case.regularizer is not None)
        weight_B = self.random(case.rows).sigmoid()
        loss = random_label_losses(
            *([features_BD], [self.weight_KD], [labels_B]),
            biases=[self.bias_K],
            pairs=[(second_B, weight_B)] if case.pair else None,
            regularizer=case.regularizer,
            impl="triton",
            memory_budget=0 if case.slabs else None,
            consumer=taken.append,
            kept=self.kept,
        ).by_head()[0]
        (scale * loss.cross_entropy_B * self.random(case.rows).exp()).sum().backward()
        (gradient,) = taken
        assert gradient.in_tiles
        return gradient


def optimizer_of(rule: UpdateRule, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    """torch's own, with its fused step."""
    shared: dict[str, Any] = {"lr": rule.lr, "weight_decay": rule.weight_decay, "fused": True}
    if isinstance(rule, SgdRule):
        return torch.optim.SGD([parameter], momentum=rule.momentum, nesterov=rule.nesterov, **shared)
    kind = torch.optim.AdamW if rule.decoupled else torch.optim.Adam
    return kind([parameter], betas=(rule.beta1, rule.beta2), eps=rule.eps, **shared)


def states_of(rule: UpdateRule, weight_KD: Tensor) -> list[Tensor]:
    zeros = [torch.zeros_like(weight_KD) for _ in range(2)]
    if isinstance(rule, SgdRule):
        return zeros[: int(rule.momentum > 0)]
    return [*zeros, torch.zeros((), device=weight_KD.device)]


def assert_steps_are_the_optimizers(case: UpdateCase) -> None:
    """Every other one with what is found by a survey; gradients of biases and norms are those of the gradient, too.

    Of narrow operands the copy of the weight is that of the new one, so that nothing is cast any more.
    """
    use_small_slabs() if case.slabs else use_default_slabs()
    try:
        head, rule = Head(case), RULES[case.rule]
        twin = torch.nn.Parameter(head.weight_KD.detach().clone())
        optimizer, states = optimizer_of(rule, twin), states_of(rule, head.weight_KD)
        never = torch.zeros((), dtype=torch.bool, device=case.device)
        for number in range(case.steps):
            gradient = head.backward(scale=10.0**-number if number < 3 else 1.0)
            twin.grad, bias_K = gradient.make()
            assert twin.grad is not None
            squared = float(twin.grad.double().square().sum())
            found = [gradient.survey()] if number % 2 else []
            copy_KD = head.kept.copy_of(head.weight_KD, case.dtype)
            assert (copy_KD is not None) == (case.dtype != torch.float32)
            found.append(gradient.update(rule, states, never))
            optimizer.step()
            for bias_found_K, squared_found in found:
                assert bias_K is None if bias_found_K is None else torch.equal(bias_found_K, bias_K)
                assert abs(float(squared_found) - squared) <= 1e-5 * squared
            assert float((head.weight_KD - twin).norm()) <= 1e-6 * float(twin.norm())
            torch.testing.assert_close(head.weight_KD, twin, rtol=2e-6, atol=1e-4 * rule.lr)
            if copy_KD is not None:
                assert torch.equal(copy_KD, head.weight_KD.to(case.dtype))
                assert head.kept.stack([head.weight_KD], case.dtype).data_ptr() == copy_KD.data_ptr()
        of_torch = [state for state in optimizer.state[twin].values() if isinstance(state, Tensor)]
        for state, expected in zip(sorted(states, key=_size), sorted(of_torch, key=_size), strict=True):
            assert float((state - expected).norm()) <= 2e-6 * float(expected.norm())
    finally:
        use_default_slabs()


def _size(state: Tensor) -> tuple[int, float]:
    return state.numel(), -float(state.norm())


def assert_a_step_that_is_left_out_changes_nothing(device: str = "cpu") -> None:
    case = UpdateCase(5, 70, 20, dtype=torch.bfloat16, device=device)
    head = Head(case)
    gradient, rule = head.backward(), RULES["adamw"]
    weight_KD, bias_K = gradient.make()
    assert weight_KD is not None
    states = [torch.ones(70, 20, device=device), torch.ones(70, 20, device=device), torch.tensor(3.0, device=device)]
    copy_KD = head.kept.copy_of(head.weight_KD, case.dtype)
    assert copy_KD is not None
    tensors = [head.weight_KD, copy_KD, *states]
    before = [tensor.detach().clone() for tensor in tensors]
    bias_found_K, squared = gradient.update(rule, states, torch.ones((), dtype=torch.bool, device=device))
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True))
    assert bias_found_K is not None
    assert bias_K is not None
    assert torch.equal(bias_found_K, bias_K)
    assert abs(float(squared) - float(weight_KD.square().sum())) <= 1e-5 * float(squared)


def assert_a_row_that_is_not_finite_shows(value: float) -> None:
    gradient = Head(UpdateCase(5, 70, 20)).backward()
    scale_CB = gradient.gradient.scale_CB.clone()
    scale_CB[0, 3] = value
    spoiled = gradient._replace(gradient=gradient.gradient._replace(scale_CB=scale_CB))
    assert not spoiled.survey()[1].isfinite()
    assert not spoiled.norm_bound().isfinite()


def assert_counts_of_steps_lose_no_digits() -> None:
    for number in (1, 2, 3, 20, 1000, 123_457):
        step = torch.tensor(float(number - 1))
        rule = AdamRule(0.003, 0.0, 0.9, 0.9999, 1e-8, decoupled=True)
        rates = count_step(rule, step, torch.zeros((), dtype=torch.bool))
        exact = (rule.lr / (1 - rule.beta1**number), (1 - rule.beta2**number) ** -0.5)
        assert float(step) == number
        torch.testing.assert_close(rates.double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-6, atol=0)


def assert_pending_updates_are_separate_ones(device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    """Two heads of a part, trained by what the backward pass leaves and by `.grad`: clipped, scaled, and once left out.

    They share their launches; the copies of their weights in another dtype, which the products take, are written by the update.
    """
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(600, 12, generator=generator).to(device)) for _ in range(2)]
    twins = [torch.nn.Parameter(weight_KD.detach().clone()) for weight_KD in weights]
    kept, pending = KeptOperands(), PendingUpdate()
    optimizers = [torch.optim.AdamW(each, lr=0.01, eps=1e-4, fused=True) for each in (weights, twins)]

    for factor, left_out in ((0.5, False), (2.0, True), (1.0, False), (None, False)):
        features_BD = torch.randn(5, 12, generator=generator).to(device, dtype)
        labels = list(torch.randint(600, (2, 5), generator=generator).to(device))
        for parameters, consumer in ((weights, pending), (twins, None)):
            losses = random_label_losses(
                features_BD, parameters, labels, impl="triton", consumer=consumer, kept=kept
            ).by_head()
            sum(loss.cross_entropy_B.sum() for loss in losses).backward()  # type: ignore[union-attr]
        squared = [] if factor is None else pending.survey()
        flag = torch.tensor(left_out, device=device)
        found = pending.apply(optimizers[0], None if factor is None else torch.tensor(factor, device=device), flag)
        for one, two, twin in zip(squared or found, found, twins, strict=True):
            assert twin.grad is not None
            assert abs(float(one) / float(twin.grad.square().sum()) - 1) <= 1e-5
            assert abs(float(two) / float(one) / (factor or 1.0) ** 2 - 1) <= 1e-5
            twin.grad *= factor or 1.0
        take_step(optimizers[1], flag)
        optimizers[1].zero_grad()
        for weight_KD, twin in zip(weights, twins, strict=True):
            torch.testing.assert_close(weight_KD, twin, rtol=2e-6, atol=1e-6)
            copy_KD = kept.copy_of(weight_KD, dtype)
            assert copy_KD is not None
            assert torch.equal(copy_KD, weight_KD.to(dtype))
    for weight_KD, twin in zip(weights, twins, strict=True):
        assert float(optimizers[0].state[weight_KD]["step"]) == float(optimizers[1].state[twin]["step"]) == 3


def launches_of_an_update(name: str) -> Launches:
    """What a step in tiles launches beside the loss, other values and a step that is left out no less."""
    found = []
    for left_out in (False, True):
        head, rule = Head(UpdateCase(8, 1000, 16, name, torch.bfloat16)), RULES[name]
        gradient, states = head.backward(), states_of(rule, head.weight_KD)
        flag = torch.tensor(left_out)
        with counted() as launches:
            gradient.update(rule, states, flag)
        found.append(launches)
    assert found[0].grids == found[1].grids
    assert found[0].aten == found[1].aten
    assert not HOST_READS & found[0].aten.keys()
    return found[0]
