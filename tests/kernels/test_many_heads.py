"""Several heads in one call: what each gets is what it gets alone."""

import warnings

import pytest
import torch
from kernel_problems import IMPLS, KINDS, Problem, assert_same, evaluate, make_problem
from torch import Tensor

from rlpheads.kernels.random_label_loss import random_label_loss, random_label_losses

impls = pytest.mark.parametrize("impl", IMPLS)
kinds = pytest.mark.parametrize("kind", KINDS)


def evaluate_together(problems: list[Problem], kind: str, impl: str, **options: object) -> list[dict[str, Tensor]]:
    """`kernel_problems.evaluate` of every problem, all in one call and one backward."""
    features = [problem.features_BD.detach().requires_grad_() for problem in problems]
    weights = [problem.weight_KD.detach().requires_grad_() for problem in problems]
    biases = [None if p.bias_K is None else p.bias_K.detach().requires_grad_() for p in problems]
    losses = random_label_losses(
        features,
        weights,
        [problem.labels_B for problem in problems],
        biases=biases,
        pairs=[problem.pair for problem in problems],
        regularizer=kind,
        joint=True,
        impl=impl,
        **options,
    ).by_head()
    results = [{name: value.detach() for name, value in loss._asdict().items()} for loss in losses]
    upstream_B = torch.arange(1.0, 1 + len(problems[0].labels_B), dtype=losses[0].lse_B.dtype)

    def gradients(member: str, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        total = sum((upstream_B * getattr(loss, member)).sum() for loss in losses)
        return torch.autograd.grad(total, tensors, retain_graph=True) if tensors else ()

    present = [bias_K for bias_K in biases if bias_K is not None]
    for result, gradient in zip(results, gradients("cross_entropy_B", weights), strict=True):
        result["weight_gradient"] = gradient
    with_bias = [result for result, bias_K in zip(results, biases, strict=True) if bias_K is not None]
    for result, gradient in zip(with_bias, gradients("cross_entropy_B", present), strict=True):
        result["bias_gradient"] = gradient
    for name, member in (("joint_gradient", "joint_B"), ("regularizer_gradient", "regularizer_B")):
        for result, gradient in zip(results, gradients(member, features), strict=True):
            result[name] = gradient
    return results


@impls
@kinds
@pytest.mark.parametrize("seeds", [(1, 2, 5), (3, 6, 9), (2,)], ids=["bias or not", "pairs", "one head"])
def test_heads_of_one_call_get_what_they_get_alone(impl: str, kind: str, seeds: tuple[int, ...], small_tiles) -> None:
    problems = [make_problem(seed, 6, 23, num_features=3 + seed) for seed in seeds]
    together = evaluate_together(problems, kind, impl, memory_budget=8 * 6 * 10)
    upstream_B = torch.arange(1.0, 7, dtype=torch.float64)
    for problem, result in zip(problems, together, strict=True):
        alone = evaluate(problem, kind, impl, upstream_B=upstream_B, memory_budget=8 * 6 * 10)
        assert_same(result, alone, 1e-12)


@impls
@kinds
def test_heads_that_share_their_features_add_up_in_them(impl: str, kind: str) -> None:
    problems = [make_problem(seed, 6, 23) for seed in (1, 2, 5)]
    features_BD = problems[0].features_BD.requires_grad_()
    arguments = [p.weight_KD for p in problems], [p.labels_B for p in problems]
    losses = random_label_losses(features_BD, *arguments, regularizer=kind, impl=impl).by_head()
    alone = [
        random_label_loss(features_BD, weight_KD, labels_B, regularizer=kind, impl=impl)
        for weight_KD, labels_B in zip(*arguments, strict=True)
    ]
    together, one_by_one = (
        torch.autograd.grad(sum(loss.regularizer_B.sum() for loss in group), features_BD)[0]
        for group in (losses, alone)
    )
    torch.testing.assert_close(together, one_by_one)
    for loss, expected in zip(losses, alone, strict=True):
        torch.testing.assert_close(loss.regularizer_B, expected.regularizer_B)
        assert torch.equal(loss.hit_B, expected.hit_B)


@impls
def test_heads_without_rows(impl: str) -> None:
    problems = [make_problem(seed, 0, 23) for seed in (1, 2)]
    for result in evaluate_together(problems, "uniform", impl):
        assert result["lse_B"].shape == (0,)
        assert torch.equal(result["weight_gradient"], torch.zeros(23, 5, dtype=torch.float64))


def test_a_frozen_head_among_trained_ones_gets_no_gradient() -> None:
    problems = [make_problem(seed, 6, 23) for seed in (2, 4)]
    frozen, trained = problems[0].weight_KD, problems[1].weight_KD.requires_grad_()
    labels = [problem.labels_B for problem in problems]
    losses = random_label_losses(problems[1].features_BD, [frozen, trained], labels, impl="tiled_cpu").by_head()
    sum(loss.cross_entropy_B.sum() for loss in losses).backward()
    assert frozen.grad is None
    expected = evaluate(problems[1], None, "tiled_cpu")["weight_gradient"]
    torch.testing.assert_close(trained.grad, expected)


@pytest.mark.long
def test_many_heads_compile_into_one_graph() -> None:
    torch.manual_seed(0)
    table_MN, index_B = torch.randint(40, (3, 50)), torch.randint(50, (8,))
    inputs = (torch.randn(8, 6).requires_grad_(), *(torch.randn(40, 6).requires_grad_() for _ in range(3)))

    def step(features_BD: Tensor, *weights: Tensor) -> Tensor:
        labels = [(table_MN, index_B, draw) for draw in range(3)]
        losses = random_label_losses(features_BD, weights, labels, regularizer="uniform", impl="tiled_cpu").by_head()
        return sum(loss.cross_entropy_B.mean() + loss.regularizer_B.mean() for loss in losses)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected, actual = (torch.autograd.grad(function(*inputs), inputs) for function in (step, compiled))
    for one, two in zip(expected, actual, strict=True):
        torch.testing.assert_close(two, one)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_compiled_heads_whose_gradient_nobody_wants_share_no_memory(dtype: torch.dtype) -> None:
    """torch warns of outputs of an operator that are one tensor, and will refuse them."""
    features_BD, weights = torch.randn(8, 6, dtype=dtype), [torch.randn(10, 6, dtype=dtype) for _ in range(2)]
    labels_B = torch.randint(10, (8,))

    def measure(features_BD: Tensor) -> Tensor:
        return random_label_losses(features_BD, weights, [labels_B] * 2, impl="batched").lse_HB.sum(0)

    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", ".*custom operator")
        actual = torch.compile(measure, fullgraph=True, backend="aot_eager")(features_BD)
    torch.testing.assert_close(actual, measure(features_BD))


ROWS, HEAD, LABELS = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [], "labels": [], "features": []}, "at least one head is needed"),
        ({"weights": [HEAD]}, "one entry for each head; got 2 features, 1 weights, 1 biases, 2 labels, 1 pairs"),
        ({"features": [ROWS]}, "got 1 features, 2 weights"),
        ({"biases": [None]}, "2 weights, 1 biases"),
        ({"weights": [HEAD, torch.zeros(6, 4)]}, r"the same labels \(K\); got \[5, 6\]"),
        ({"features": [ROWS, ROWS[:2]], "labels": [LABELS, LABELS[:2]]}, r"the same rows \(B\); got \[3, 2\]"),
        ({"weights": [HEAD, HEAD.double()]}, "the same dtype of their sums; got .*float32.*float64"),
        ({"weights": [HEAD, HEAD[:, :3]]}, r"head 1: features must be \(B, D\)"),
        ({"labels": [LABELS, LABELS.float()]}, "head 1: labels must be int32 or int64"),
        ({"labels": [LABELS, LABELS + 5]}, r"labels must be in \[0, 5\); got labels from 0 to 5"),
        ({"features": [ROWS, ROWS.to("meta")], "weights": [HEAD, HEAD.to("meta")]}, "head 1: features must be on"),
        ({"pairs": [(LABELS, torch.ones(3)), None]}, "pairs for all heads or for none; got a pair for 1 of 2"),
    ],
)
def test_heads_that_do_not_go_together_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_label_losses(**{"features": [ROWS, ROWS], "weights": [HEAD, HEAD], "labels": [LABELS, LABELS], **change})
