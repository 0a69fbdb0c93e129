"""Heads of few labels in C++: as accurate as plain PyTorch, the same bits on any number of threads, its values checked."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from kernel_problems import KINDS, Problem, assert_same, evaluate, make_problem, margin_problem, relative_error
from torch import Tensor

from rlpheads.kernels import native
from rlpheads.kernels.batched import written_rows
from rlpheads.kernels.batched.batched_native import MAX_LABELS_OF_LOOPS
from rlpheads.kernels.implementations import resolve_impl, resolve_kernel
from rlpheads.kernels.random_label_loss import random_label_loss, random_label_losses

kinds = pytest.mark.parametrize("kind", KINDS)
SHAPES = [(6, 23, 5), (7, 10, 192), (37, 2, 16), (13, MAX_LABELS_OF_LOOPS, 33), (129, 300, 17), (1, 1003, 48)]
"""Rows, labels, features: ragged in every block of the loops, and on both sides of the library's products."""


def assert_as_accurate_as_plain(problem: Problem, kind: str) -> None:
    """In float32 the error is at most twice the plain implementation's, and 1e-6; measures and hits among it.

    The gradients' may also be what the rounding of the logits explains: sums of other lengths or order than the plain ones (a
    processor's vectors decide) move a logit Σ x·w by 2⁻²⁴ of Σ |x·w|, and that is a relative error of its probability.
    """
    narrow = problem.to(torch.float32)
    truth = evaluate(narrow.to(torch.float64), kind, "reference")
    plain, found = evaluate(narrow, kind, "reference"), evaluate(narrow, kind, "batched")
    is_clear_B = truth["margin_B"].abs() > 1e-4
    summed_BK = narrow.features_BD.detach().abs() @ narrow.weight_KD.detach().abs().T
    rounding = float(summed_BK.max()) * 2**-24
    assert torch.equal(found["hit_B"][is_clear_B], truth["hit_B"][is_clear_B])
    for name in truth:
        if name.endswith("gradient"):
            bound = 2 * relative_error(plain[name], truth[name]) + 1e-6 + rounding
            assert relative_error(found[name], truth[name]) <= bound, name
        elif name != "hit_B":
            scale = 1 + truth[name].abs().max()
            plain_error, error = ((each[name].double() - truth[name]).abs().max() / scale for each in (plain, found))
            assert error <= 2 * plain_error + 1e-6, name


@kinds
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_every_shape_and_spread(kind: str, shape: tuple[int, int, int], spread: float) -> None:
    num_rows, num_labels, num_features = shape
    for seed in (2, 3):  # neither bias nor pair, and both
        problem = make_problem(seed, num_rows, num_labels, num_features=num_features, spread=spread)
        assert_as_accurate_as_plain(problem, kind)


@kinds
@pytest.mark.parametrize("margin", [0, 8, 16, 40, 80])
@pytest.mark.parametrize("num_labels", [40, 500])
def test_every_margin(kind: str, margin: int, num_labels: int) -> None:
    assert_as_accurate_as_plain(margin_problem(margin, num_labels=num_labels), kind)


@kinds
def test_a_second_label_that_repeats_the_first_changes_nothing(kind: str) -> None:
    problem = make_problem(1, 9, 12).to(torch.float32)
    weight_B = torch.linspace(0, 1, 9)
    repeated = Problem(
        problem.features_BD, problem.weight_KD, problem.labels_B, problem.bias_K, (problem.labels_B, weight_B)
    )
    assert_same(evaluate(repeated, kind, "batched"), evaluate(problem, kind, "batched"), 1e-6)


@pytest.mark.parametrize("num_labels", [10, 100])
def test_the_bits_do_not_depend_on_the_threads(num_labels: int) -> None:
    problem = make_problem(3, 70, num_labels, num_features=96).to(torch.float32)
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(evaluate(problem, "entropy", "batched"))
    finally:
        torch.set_num_threads(threads)
    names = [name for name in found[0] if num_labels <= MAX_LABELS_OF_LOOPS]  # beyond, the library multiplies
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in names)


@pytest.mark.parametrize("num_labels", [10, 300])
def test_a_mean_is_the_sum_of_equal_shares(num_labels: int) -> None:
    problem = make_problem(4, 40, num_labels, num_features=70).to(torch.float32)

    def gradients(reduce: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves = [each.detach().requires_grad_() for each in (problem.features_BD, problem.weight_KD)]
        loss = random_label_loss(*leaves, problem.labels_B, regularizer="uniform", impl="batched")
        assert loss.regularizer_B is not None
        return list(torch.autograd.grad(reduce(loss.cross_entropy_B) + reduce(loss.regularizer_B), leaves))

    shares_B = torch.full((40,), 1 / 40)
    for found, expected in zip(gradients(Tensor.mean), gradients(lambda loss_B: loss_B @ shares_B), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_row_of_nan_leaves_the_others_alone() -> None:
    problem = make_problem(1, 4, 30).to(torch.float32)
    broken_BD = problem.features_BD.clone()
    broken_BD[1] = torch.nan
    clean = evaluate(problem, "unlikelihood", "batched")
    broken = evaluate(
        Problem(broken_BD, problem.weight_KD, problem.labels_B, problem.bias_K), "unlikelihood", "batched"
    )
    keep = [0, 2, 3]
    for name in ("cross_entropy_B", "regularizer_B", "bits_B", "margin_B", "lse_B", "regularizer_gradient"):
        torch.testing.assert_close(broken[name][keep], clean[name][keep])
    for name in ("cross_entropy_B", "regularizer_B", "bits_B", "lse_B", "regularizer_gradient"):
        assert broken[name][1].isnan().all(), name
    assert not broken["hit_B"][1]


def gradients_of_heads(problems: list[Problem], shared: Tensor | None) -> list[Tensor]:
    weights = [problem.weight_KD.detach().requires_grad_() for problem in problems]
    features = [problem.features_BD.detach().requires_grad_() for problem in problems] if shared is None else [shared]
    losses = random_label_losses(
        features if shared is None else shared,
        weights,
        [problem.labels_B for problem in problems],
        regularizer="uniform",
        joint=True,
        impl="batched",
    ).by_head()
    total = sum(
        (n + 1) * (loss.cross_entropy_B + loss.regularizer_B + 2 * loss.joint_B).sum() for n, loss in enumerate(losses)
    )
    return list(torch.autograd.grad(total, [*weights, *features]))


@pytest.mark.parametrize("num_labels", [11, 100])
@pytest.mark.parametrize("is_shared", [False, True])
def test_heads_in_cpp_equal_those_in_pytorch(num_labels: int, is_shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = [7] * 3 if is_shared else [5, 40, 19]
    problems = [make_problem(2, 10, num_labels, num_features=width).to(torch.float32) for width in widths]
    shared = problems[0].features_BD.requires_grad_() if is_shared else None
    found = gradients_of_heads(problems, shared)
    monkeypatch.setattr(native, "load_library", lambda: None)
    for one, other in zip(found, gradients_of_heads(problems, shared), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_call_of_known_shapes_still_looks_at_its_labels_and_a_call_of_others_at_its_shapes() -> None:
    features_BD, weight_KD = torch.zeros(3, 4), torch.zeros(5, 4)
    good_B = torch.tensor([0, 1, 4])
    for _ in range(2):
        random_label_loss(features_BD, weight_KD, good_B)
        with pytest.raises(ValueError, match=r"labels must be in \[0, 5\); got labels from 1 to 5"):
            random_label_loss(features_BD, weight_KD, good_B + 1)
        with pytest.raises(ValueError, match=r"weights of a pair must be in \[0, 1\]"):
            random_label_loss(features_BD, weight_KD, good_B, pair=(good_B, torch.full((3,), 1.5)))
        with pytest.raises(ValueError, match=r"labels must be \(3,\)"):
            random_label_loss(features_BD, weight_KD, good_B[:2])
        with pytest.raises(ValueError, match="weight must be of a floating-point dtype"):
            random_label_loss(features_BD, weight_KD.long(), good_B)


@pytest.mark.parametrize(
    ("num_rows", "num_labels", "impl", "kernel"),
    [
        (10**6, 10, "batched", "reference"),
        (64, 1000, "batched", "tiled_cpu"),
        (2048, 2048, "tiled_cpu", "tiled_cpu"),
        (3, 10_000, "batched", "reference"),
        (64, 10_000, "tiled_cpu", "tiled_cpu"),
    ],
)
def test_what_auto_takes(num_rows: int, num_labels: int, impl: str, kernel: str) -> None:
    features_BD = torch.zeros(1, 1).expand(num_rows, 1)
    assert resolve_impl("auto", features_BD, num_labels) == impl
    assert resolve_kernel("auto", features_BD, num_labels) == kernel


@pytest.mark.parametrize(
    ("num_rows", "num_labels", "impl"),
    [(64, 10_000, "batched"), (64, 10_001, "tiled_cpu"), (2048, 10_000, "tiled_cpu")],
)
def test_what_auto_takes_in_bfloat16(num_rows: int, num_labels: int, impl: str) -> None:
    features_BD = torch.zeros(1, 1, dtype=torch.bfloat16).expand(num_rows, 1)
    assert resolve_impl("auto", features_BD, num_labels, in_bfloat16=True) == impl


@pytest.mark.parametrize("kind", [None, "uniform", "entropy"])
def test_products_in_bfloat16_are_as_near_as_plain_mixed_precision(kind: str | None, monkeypatch) -> None:
    """On any processor: where they are slow, `auto` does not take them."""
    monkeypatch.setattr(written_rows, "_has_bfloat16_instructions", lambda: True)
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(size, 48, generator=generator).bfloat16().double() for size in (40, 300, 300)]
    labels_B = torch.randint(300, (40,), generator=generator)

    def gradients(dtype: torch.dtype, loss_of: Callable[..., Tensor]) -> list[Tensor]:
        x_BD, *weights = (each.to(dtype, copy=True).requires_grad_() for each in exact)
        loss_of(x_BD, weights).backward()
        return [each.grad.double() for each in (x_BD, *weights) if each.grad is not None]

    def ours(x_BD: Tensor, weights: list[Tensor], impl: str = "batched") -> Tensor:
        losses = random_label_losses(x_BD, weights, [labels_B] * 2, regularizer=kind, joint=kind is None, impl=impl)
        routed_HB = losses.joint_HB if kind is None else losses.regularizer_HB
        return losses.cross_entropy_HB.mean() + routed_HB.mean()

    def plain(x_BD: Tensor, weights: list[Tensor]) -> Tensor:
        """Products in bfloat16, whatever else in float32."""
        total = 0.0
        for weight_KD in weights:
            cross_entropy = F.cross_entropy(F.linear(x_BD.detach(), weight_KD).float(), labels_B)
            log_p_BK = F.log_softmax(F.linear(x_BD, weight_KD.detach()).float(), 1)
            routed = {
                None: F.nll_loss(log_p_BK, labels_B),
                "uniform": -log_p_BK.mean(),
                "entropy": (log_p_BK.exp() * log_p_BK).sum(1).mean(),
            }
            total = total + (cross_entropy + routed[kind]) / len(weights)
        return total

    expected = gradients(torch.float64, partial(ours, impl="reference"))
    found, theirs = gradients(torch.bfloat16, ours), gradients(torch.bfloat16, plain)
    for one, other, true in zip(found, theirs, expected, strict=True):
        error, allowed = (float((each - true).norm() / true.norm()) for each in (one, other))
        assert 0 < error <= 2 * allowed + 1e-6, (error, allowed)
