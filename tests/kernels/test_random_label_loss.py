"""What a caller of `random_label_loss` relies on: known answers, gradient routes, inputs of all dtypes and layouts."""

import math
from dataclasses import replace

import pytest
import torch
from kernel_problems import (
    IMPLS,
    KINDS,
    Problem,
    assert_classes_without_probability_do_not_count,
    assert_label_without_probability,
    assert_same,
    evaluate,
    make_problem,
)
from torch import Tensor

from rlpheads.kernels.random_label_loss import random_label_loss

impls = pytest.mark.parametrize("impl", IMPLS)
kinds = pytest.mark.parametrize("kind", KINDS)


def loss_of_logits(logits: list[list[float]], labels: list[int], **options: object):
    """The loss of a head whose logits are these: one-hot features, one for each row."""
    logits_BK = torch.tensor(logits, dtype=torch.float64)
    return random_label_loss(torch.eye(len(logits), dtype=torch.float64), logits_BK.T, torch.tensor(labels), **options)


# ----------------------------------------------------------------------------------------------------- known answers


@impls
def test_values_of_a_row_with_known_probabilities(impl: str) -> None:
    logits = [[math.log(1), math.log(2), math.log(5)]]
    p = [1 / 8, 2 / 8, 5 / 8]
    expected = {
        "unlikelihood": -math.log(1 - p[1]),
        "uniform": -sum(math.log(q) for q in p) / 3,
        "reversal": math.log(p[1]),
        "entropy": sum(q * math.log(q) for q in p) + math.log(3),
    }
    for kind, value in expected.items():
        loss = loss_of_logits(logits, [1], regularizer=kind, joint=True, impl=impl)
        assert loss.regularizer_B.item() == pytest.approx(value, abs=1e-12)
        assert loss.cross_entropy_B.item() == loss.joint_B.item() == pytest.approx(-math.log(p[1]), abs=1e-12)
        assert loss.bits_B.item() == pytest.approx(math.log2(3) + math.log2(p[1]), abs=1e-12)
        assert loss.lse_B.item() == pytest.approx(math.log(8), abs=1e-12)
        assert loss.margin_B.item() == pytest.approx(math.log(2 / 5), abs=1e-12)
        assert not loss.hit_B.item()


@impls
@kinds
def test_values_of_a_pair_are_weighted_sums(impl: str, kind: str) -> None:
    logits, weight_B = [[0.3, -1.0, 2.0, 0.1]], torch.tensor([0.7], dtype=torch.float64)
    first, second = (loss_of_logits(logits, [y], regularizer=kind, impl=impl) for y in (2, 1))
    pair = loss_of_logits(logits, [2], pair=(torch.tensor([1]), weight_B), regularizer=kind, impl=impl)
    torch.testing.assert_close(pair.cross_entropy_B, 0.7 * first.cross_entropy_B + 0.3 * second.cross_entropy_B)
    torch.testing.assert_close(pair.regularizer_B, 0.7 * first.regularizer_B + 0.3 * second.regularizer_B)
    for name in ("hit_B", "bits_B", "margin_B", "lse_B"):
        torch.testing.assert_close(getattr(pair, name), getattr(first, name))


@impls
@kinds
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_a_pair_of_equal_labels_is_one_label(impl: str, kind: str, weight: float, tile_classes: int) -> None:
    single = make_problem(1, 6, 17)
    weight_B = torch.full((6,), weight, dtype=torch.float64)
    pair = Problem(single.features_BD, single.weight_KD, single.labels_B, single.bias_K, (single.labels_B, weight_B))
    assert_same(evaluate(pair, kind, impl), evaluate(single, kind, impl), 1e-13)


@impls
@kinds
@pytest.mark.parametrize("margin", [-200.0, 200.0])
def test_a_pair_of_equal_labels_at_a_margin_past_the_exponent_of_float32(impl: str, kind: str, margin: float) -> None:
    single = Problem(torch.tensor([[margin]]), torch.tensor([[0.0], [1.0]]), torch.tensor([1]))
    pair = replace(single, pair=(single.labels_B, torch.tensor([0.25])))
    expected = evaluate(single.to(torch.float64), kind, "reference")
    assert_same(evaluate(pair, kind, impl), expected, 1e-6)


@impls
@kinds
def test_two_labels_that_are_all_classes(impl: str, kind: str) -> None:
    problem = make_problem(0, 4, 2)
    labels_B, weight_B = torch.tensor([0, 1, 1, 0]), torch.tensor([0.2, 0.5, 1.0, 0.0], dtype=torch.float64)
    problem = Problem(problem.features_BD, problem.weight_KD, labels_B, None, (1 - labels_B, weight_B))
    result = evaluate(problem, kind, impl)
    assert all(value.isfinite().all() for value in result.values())
    assert_same(result, evaluate(problem, kind, "reference"), 1e-12)


@impls
def test_hit_gives_ties_to_the_lowest_label(impl: str, tile_classes: int) -> None:
    tied = [0.0] * 20
    for index in (3, 9, 16):  # in three tiles of 7
        tied[index] = 2.5
    labels = list(range(20))
    loss = loss_of_logits([tied] * 20, labels, impl=impl)
    assert loss.hit_B.tolist() == [y == 3 for y in labels]
    assert loss.margin_B.tolist() == [0.0 if tied[y] else -2.5 for y in labels]
    assert loss_of_logits([tied[::-1]] * 20, labels, impl=impl).hit_B.tolist() == [y == 3 for y in labels]


@impls
def test_hit_of_a_pair_counts_the_second_label_among_the_others(impl: str, tile_classes: int) -> None:
    logits = [0.0] * 20
    logits[5], logits[12] = 1.0, 3.0
    half_B = torch.full((2,), 0.5, dtype=torch.float64)
    loss = loss_of_logits([logits] * 2, [5, 12], pair=(torch.tensor([12, 5]), half_B), impl=impl)
    assert loss.hit_B.tolist() == [False, True]
    assert loss.margin_B.tolist() == [-2.0, 2.0]
    logits[12] = 1.0  # now a tie, which goes to 5
    loss = loss_of_logits([logits] * 2, [5, 12], pair=(torch.tensor([12, 5]), half_B), impl=impl)
    assert loss.hit_B.tolist() == [True, False]


@impls
@kinds
def test_sign_by_effect(impl: str, kind: str) -> None:
    problem = make_problem(1, 32, 30, spread=2.0)
    before = evaluate(problem, kind, impl)
    step_BD = problem.features_BD - 0.01 * before["regularizer_gradient"]
    after = evaluate(Problem(step_BD, problem.weight_KD, problem.labels_B, problem.bias_K), kind, impl)
    if kind in ("unlikelihood", "reversal"):
        assert (after["bits_B"] < before["bits_B"]).all()
        return
    entropy_before = evaluate(problem, "entropy", "reference")["regularizer_B"]
    entropy_after = evaluate(Problem(step_BD, problem.weight_KD, problem.labels_B, problem.bias_K), "entropy", impl)
    assert entropy_after["regularizer_B"].mean() < entropy_before.mean()
    assert (after["regularizer_B"] < before["regularizer_B"]).all()


# ------------------------------------------------------------------------------------------------------ who trains whom


def leaves(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    bias_K = torch.zeros(len(problem.weight_KD), dtype=torch.float64)
    return tuple(t.detach().clone().requires_grad_() for t in (problem.features_BD, problem.weight_KD, bias_K))


@impls
@kinds
def test_each_loss_reaches_its_own_side_only(impl: str, kind: str) -> None:
    problem = make_problem(1, 5, 11)
    features_BD, weight_KD, bias_K = leaves(problem)
    loss = random_label_loss(
        features_BD, weight_KD, problem.labels_B, bias_K=bias_K, regularizer=kind, joint=True, impl=impl
    )
    inputs = (features_BD, weight_KD, bias_K)
    for value_B, reached in (
        (loss.cross_entropy_B, [False, True, True]),
        (loss.regularizer_B, [True, False, False]),
        (loss.joint_B, [True, False, False]),
    ):
        gradients = torch.autograd.grad(value_B.sum(), inputs, retain_graph=True, allow_unused=True)
        assert [gradient is not None for gradient in gradients] == reached
    assert not any(value.requires_grad for value in (loss.hit_B, loss.bits_B, loss.margin_B, loss.lse_B))


@impls
def test_without_feature_losses_the_network_below_is_not_visited(impl: str) -> None:
    problem = make_problem(1, 5, 11)
    features_BD, weight_KD, _ = leaves(problem)
    visited = []
    below_BD = features_BD * 2
    below_BD.register_hook(visited.append)
    loss = random_label_loss(below_BD, weight_KD, problem.labels_B, impl=impl)
    assert loss.regularizer_B is None
    assert loss.joint_B is None
    loss.cross_entropy_B.sum().backward()
    assert not visited
    assert features_BD.grad is None
    assert weight_KD.grad is not None


@impls
def test_frozen_sides_get_no_graph(impl: str) -> None:
    problem = make_problem(1, 5, 11)
    features_BD, weight_KD, bias_K = leaves(problem)
    frozen = random_label_loss(features_BD, weight_KD.detach(), problem.labels_B, regularizer="uniform", impl=impl)
    assert not frozen.cross_entropy_B.requires_grad
    assert frozen.regularizer_B.requires_grad
    bias_only = random_label_loss(features_BD, weight_KD.detach(), problem.labels_B, bias_K=bias_K, impl=impl)
    bias_only.cross_entropy_B.sum().backward()
    whole = evaluate(Problem(problem.features_BD, problem.weight_KD, problem.labels_B, bias_K), None, impl)
    torch.testing.assert_close(bias_K.grad, whole["bias_gradient"])
    fixed = random_label_loss(features_BD.detach(), weight_KD, problem.labels_B, regularizer="uniform", impl=impl)
    assert not fixed.regularizer_B.requires_grad
    with torch.no_grad():
        silent = random_label_loss(features_BD, weight_KD, problem.labels_B, regularizer="uniform", impl=impl)
    assert not silent.cross_entropy_B.requires_grad
    assert not silent.regularizer_B.requires_grad
    torch.testing.assert_close(silent.regularizer_B, frozen.regularizer_B.detach())


@impls
@kinds
def test_upstream_gradients_are_honoured_row_by_row(impl: str, kind: str, tile_classes: int) -> None:
    problem = make_problem(3, 6, 23)
    upstream_B = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    whole = evaluate(problem, kind, impl, upstream_B=upstream_B)
    for name in ("weight_gradient", "bias_gradient"):
        by_row = [evaluate(problem, kind, impl, upstream_B=row_B)[name] for row_B in torch.diag(upstream_B)]
        torch.testing.assert_close(whole[name], sum(by_row), rtol=1e-12, atol=1e-12)
    unit = evaluate(problem, kind, impl)
    for name in ("joint_gradient", "regularizer_gradient"):
        torch.testing.assert_close(whole[name], upstream_B[:, None] * unit[name], rtol=1e-12, atol=1e-12)


@impls
def test_backward_twice_under_retain_graph(impl: str) -> None:
    problem = make_problem(1, 5, 11)
    features_BD, weight_KD, bias_K = leaves(problem)
    loss = random_label_loss(
        features_BD, weight_KD, problem.labels_B, bias_K=bias_K, regularizer="unlikelihood", joint=True, impl=impl
    )
    total = (loss.cross_entropy_B + loss.regularizer_B + loss.joint_B).sum()
    first, second = (torch.autograd.grad(total, (features_BD, weight_KD, bias_K), retain_graph=True) for _ in "ab")
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


# ----------------------------------------------------------------------------------------------------- inputs of all kinds


@impls
@kinds
def test_an_empty_batch(impl: str, kind: str) -> None:
    problem = make_problem(1, 0, 11)
    result = evaluate(problem, kind, impl)
    assert result["regularizer_B"].shape == result["hit_B"].shape == (0,)
    assert result["regularizer_gradient"].shape == (0, 5)
    assert torch.equal(result["weight_gradient"], torch.zeros(11, 5, dtype=torch.float64))
    assert torch.equal(result["bias_gradient"], torch.zeros(11, dtype=torch.float64))


@impls
@pytest.mark.parametrize("num_left", [39, 2, 1])
def test_classes_without_probability_do_not_count(impl: str, num_left: int) -> None:
    assert_classes_without_probability_do_not_count(impl, num_left)


@impls
@kinds
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("num_labels", [7, 300, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_label_without_probability(impl: str, kind: str, mixed: bool, num_labels: int, dtype: torch.dtype) -> None:
    assert_label_without_probability(impl, kind, num_labels, mixed, dtype)


@impls
def test_strides_and_label_dtypes_change_nothing(impl: str) -> None:
    problem = make_problem(3, 6, 23)
    strided = Problem(
        features_BD=problem.features_BD.T.contiguous().T,
        weight_KD=problem.weight_KD.repeat_interleave(2, 0)[::2],
        labels_B=problem.labels_B.to(torch.int32).repeat_interleave(3)[::3],
        bias_K=problem.bias_K.repeat_interleave(2)[::2],
        pair=(problem.pair[0].to(torch.int32), problem.pair[1].float().double()),
    )
    assert_same(evaluate(strided, "unlikelihood", impl), evaluate(problem, "unlikelihood", impl), 1e-7)
    one_row_BD = problem.features_BD[:1].expand(6, -1)
    expanded, copied = (
        evaluate(Problem(features_BD, problem.weight_KD, problem.labels_B), "entropy", impl)
        for features_BD in (one_row_BD, one_row_BD.clone())
    )
    assert_same(expanded, copied, 1e-13)


@impls
def test_bfloat16_sums_in_float32_and_rounds_once(impl: str) -> None:
    problem = make_problem(1, 64, 40, num_features=32).to(torch.bfloat16)
    truth = evaluate(problem.to(torch.float64), "unlikelihood", "reference")
    result = evaluate(problem, "unlikelihood", impl)
    assert result["cross_entropy_B"].dtype == result["lse_B"].dtype == torch.float32
    assert_same({"lse_B": result["lse_B"]}, {"lse_B": truth["lse_B"]}, 1e-6)
    for name in ("weight_gradient", "bias_gradient", "regularizer_gradient", "joint_gradient"):
        assert result[name].dtype == torch.bfloat16
        spacing = truth[name].abs() * 2**-8 + 1e-6 * truth[name].abs().max()
        assert ((result[name].double() - truth[name]).abs() <= spacing).all(), name


@impls
def test_mixed_dtypes_keep_the_precision_of_each_gradient(impl: str) -> None:
    problem = make_problem(1, 16, 40).to(torch.float32)
    mixed = Problem(problem.features_BD.bfloat16(), problem.weight_KD, problem.labels_B, problem.bias_K)
    rounded = Problem(mixed.features_BD.float(), problem.weight_KD, problem.labels_B, problem.bias_K)
    result, truth = evaluate(mixed, "uniform", impl), evaluate(rounded, "uniform", impl)
    assert result["regularizer_gradient"].dtype == torch.bfloat16
    assert result["weight_gradient"].dtype == torch.float32
    torch.testing.assert_close(result["weight_gradient"], truth["weight_gradient"])


@impls
@kinds
def test_autocast_rounds_the_features_and_nothing_else(impl: str, kind: str) -> None:
    """The products' input is bfloat16; sums, statistics and the weight's gradient stay float32."""
    problem = make_problem(1, 16, 40).to(torch.float32)
    rounded = evaluate(
        Problem(problem.features_BD.bfloat16(), problem.weight_KD, problem.labels_B, problem.bias_K), kind, impl
    )
    features_BD, weight_KD = problem.features_BD.requires_grad_(), problem.weight_KD.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        inside = random_label_loss(
            features_BD, weight_KD, problem.labels_B, bias_K=problem.bias_K, regularizer=kind, impl=impl
        )
    for name in ("cross_entropy_B", "regularizer_B", "lse_B", "margin_B"):
        assert torch.equal(getattr(inside, name).detach(), rounded[name])
    (inside.cross_entropy_B + inside.regularizer_B).sum().backward()
    assert torch.equal(weight_KD.grad, rounded["weight_gradient"])
    assert torch.equal(features_BD.grad, rounded["regularizer_gradient"].float())


def test_autocast_leaves_float64_alone() -> None:
    problem = make_problem(1, 16, 40)
    outside = evaluate(problem, "uniform", "tiled_cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(evaluate(problem, "uniform", "tiled_cpu"), outside, 0.0)


@impls
def test_labels_from_a_table_are_the_gathered_ones(impl: str) -> None:
    """Also a pair's; and a padding row, index −1, changes no other row and no gradient that leaves it out."""
    problem = make_problem(1, 6, 17)
    table_MN = torch.randint(17, (3, 40), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    index_B, partner_B = torch.tensor([3, 39, -1, 0, 17, 3]), torch.tensor([5, -1, -1, 3, 0, 39], dtype=torch.int32)
    weight_B = torch.full((6,), 0.6, dtype=torch.float64)
    gathered_LB = [table_MN[2, index.long().clamp(min=0)] for index in (index_B, partner_B)]
    upstream_B = (index_B >= 0).double()
    actual, expected = (
        evaluate(
            Problem(problem.features_BD, problem.weight_KD, first, problem.bias_K, (second, weight_B)),
            "unlikelihood",
            impl,
            upstream_B=upstream_B,
        )
        for first, second in (
            ((table_MN, index_B, 2), (table_MN, partner_B, 2)),
            gathered_LB,
        )
    )
    assert_same(actual, expected, 0.0)
    assert all(value.isfinite().all() for value in actual.values())
    other_table_MN = table_MN.clone()
    other_table_MN[:, 1] += 1  # column 1 is nobody's
    again = evaluate(
        Problem(problem.features_BD, problem.weight_KD, (other_table_MN % 17, index_B, 2), problem.bias_K),
        "unlikelihood",
        impl,
    )
    plain = evaluate(
        Problem(problem.features_BD, problem.weight_KD, (table_MN, index_B, 2), problem.bias_K), "unlikelihood", impl
    )
    assert_same(again, plain, 0.0)
