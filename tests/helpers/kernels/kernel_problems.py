"""Random problems for the loss, and one call that returns every value and gradient of it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlpheads.kernels.operators import flat
from rlpheads.kernels.random_label_loss import random_label_loss
from rlpheads.kernels.rows.row_softmax import RowLabels, row_labels

KINDS = ("unlikelihood", "uniform", "reversal", "entropy")
IMPLS = ("reference", "batched", "tiled_cpu")


@dataclass(frozen=True)
class Problem:
    features_BD: Tensor
    weight_KD: Tensor
    labels_B: Tensor
    bias_K: Tensor | None = None
    pair: tuple[Tensor, Tensor] | None = None

    def to(self, dtype: torch.dtype) -> "Problem":
        return replace(
            self,
            features_BD=self.features_BD.to(dtype),
            weight_KD=self.weight_KD.to(dtype),
            bias_K=None if self.bias_K is None else self.bias_K.to(dtype),
        )

    def row_labels(self, dtype: torch.dtype) -> RowLabels:
        if self.pair is None:
            return row_labels(self.labels_B[None], None, dtype)
        return row_labels(torch.stack([self.labels_B, self.pair[0]]), self.pair[1], dtype)


def make_problem(seed: int, num_rows: int, num_labels: int, *, num_features: int = 5, spread: float = 1.0) -> Problem:
    """A float64 problem whose logits have this spread; bias and pair come and go with the seed."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels_LB = torch.randint(num_labels, (2, num_rows), generator=generator)
    first_weight_B = torch.rand(num_rows, generator=generator, dtype=torch.float64)
    return Problem(
        features_BD=normal(num_rows, num_features),
        weight_KD=normal(num_labels, num_features) * spread / num_features**0.5,
        labels_B=labels_LB[0],
        bias_K=normal(num_labels) * spread if seed % 2 else None,
        pair=(labels_LB[1], first_weight_B) if seed % 3 == 0 else None,
    )


def margin_problem(margin: float, *, seed: int = 0, num_rows: int = 12, num_labels: int = 500) -> Problem:
    """A float64 problem in which every label's logit lies `margin` above the largest other logit of its row."""
    plain = make_problem(6 * seed + 2, num_rows, num_labels, num_features=16)
    labels_B = torch.randperm(num_labels, generator=torch.Generator().manual_seed(seed))[:num_rows]
    rows_B = torch.arange(num_rows)
    own_BB = 8 * torch.eye(num_rows, dtype=torch.float64)  # a feature of each row's own carries its label's lead
    own_KB = torch.zeros(num_labels, num_rows, dtype=torch.float64)
    logits_BK = plain.features_BD @ plain.weight_KD.T
    top_B = logits_BK.scatter(1, labels_B[:, None], -torch.inf).amax(1)
    own_KB[labels_B, rows_B] = (top_B + margin - logits_BK[rows_B, labels_B]) / 8
    features_BD = torch.cat([plain.features_BD, own_BB], 1)
    return Problem(features_BD, torch.cat([plain.weight_KD, own_KB], 1), labels_B)


def evaluate(
    problem: Problem, kind: str | None, impl: str, *, upstream_B: Tensor | None = None, memory_budget: int | None = None
) -> dict[str, Tensor]:
    """Every output, and the gradient of every loss with respect to what it trains, under one upstream gradient."""
    features_BD = problem.features_BD.detach().requires_grad_()
    weight_KD = problem.weight_KD.detach().requires_grad_()
    bias_K = None if problem.bias_K is None else problem.bias_K.detach().requires_grad_()
    loss = random_label_loss(
        features_BD,
        weight_KD,
        problem.labels_B,
        bias_K=bias_K,
        pair=problem.pair,
        regularizer=kind,
        joint=True,
        impl=impl,
        memory_budget=memory_budget,
    )
    if upstream_B is None:
        upstream_B = torch.ones_like(loss.lse_B)
    results = {name: value.detach() for name, value in loss._asdict().items() if value is not None}
    head = [weight_KD] if bias_K is None else [weight_KD, bias_K]
    head_gradients = torch.autograd.grad(loss.cross_entropy_B, head, upstream_B)
    results |= dict(zip(("weight_gradient", "bias_gradient"), head_gradients, strict=False))
    (results["joint_gradient"],) = torch.autograd.grad(loss.joint_B, features_BD, upstream_B, retain_graph=True)
    if kind is not None:
        (results["regularizer_gradient"],) = torch.autograd.grad(loss.regularizer_B, features_BD, upstream_B)
    return results


def assert_classes_without_probability_do_not_count(impl: str, num_left: int) -> None:
    """Under a bias of −∞ `entropy` is log K − H of the softmax over the classes that are left, and so are its gradients."""
    drawn = make_problem(1, 5, 40).to(torch.float32)
    assert drawn.bias_K is not None
    left = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:num_left]
    bias_K = torch.full((40,), -torch.inf).index_copy(0, left, drawn.bias_K[left])
    problem = replace(drawn, bias_K=bias_K, labels_B=left[torch.arange(5) % num_left])
    found = evaluate(problem, "entropy", impl)
    features_BD = problem.features_BD.double().requires_grad_()
    logits_BJ = features_BD @ problem.weight_KD[left].double().T + bias_K[left]
    value_B = math.log(40) + (logits_BJ.softmax(1) * logits_BJ.log_softmax(1)).sum(1)
    (gradient_BD,) = torch.autograd.grad(value_B.sum(), features_BD)
    expected = {"regularizer_B": value_B.detach(), "regularizer_gradient": gradient_BD}
    assert_same({name: found[name] for name in expected}, expected, 1e-5)
    assert all(found[name].isfinite().all() for name in ("weight_gradient", "bias_gradient", "joint_gradient"))


def assert_label_without_probability(impl: str, kind: str, num_labels: int, mixed: bool, dtype: torch.dtype) -> None:
    """Where a row's own label has a bias of −∞, values and gradients are those of the logits written out."""
    drawn = make_problem(3 if mixed else 1, 6, num_labels).to(dtype)
    assert drawn.bias_K is not None
    barred = torch.unique(drawn.labels_B[:2])
    problem = replace(drawn, bias_K=drawn.bias_K.index_fill(0, barred, -torch.inf))
    expected = evaluate(problem.to(torch.float64), kind, "reference")
    found = evaluate(problem, kind, impl)
    assert not expected["cross_entropy_B"].isfinite().all()
    for name, truth in expected.items():
        tolerance = 1e-5 if truth.dtype.is_floating_point else 0.0
        torch.testing.assert_close(found[name].to(truth.dtype), truth, rtol=tolerance, atol=tolerance, msg=name)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """‖value − truth‖ / ‖truth‖ in float64."""
    norm = truth.double().norm()
    return float((value.double() - truth.double()).norm() / norm.clamp(min=torch.finfo(torch.float32).tiny))


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare two results of `evaluate`: flags exactly, numbers relative to the largest of their kind."""
    assert actual.keys() == expected.keys()
    for name, truth in expected.items():
        if truth.dtype == torch.bool:
            assert torch.equal(actual[name], truth), name
        elif truth.numel():
            scale = 1 + float(truth.abs().max())
            error = float((actual[name].double() - truth.double()).abs().max())
            assert error <= tolerance * scale, f"{name}: {error} of {scale}"


def check_operator(name: str, arguments: tuple[Any, ...]) -> None:
    """Torch's own check of an operator that takes a named tuple: its schema, autograd's view of it, and its fake tensors."""
    operator = getattr(torch.ops.rlpheads, name).default
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator, tuple(flat(arguments)), test_utils=checks)
