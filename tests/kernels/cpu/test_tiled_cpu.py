"""The tiled implementation against the reference, its memory, its class ranges, and its life under tracing."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_problems import KINDS, assert_same, check_operator, evaluate, make_problem
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from rlpheads.kernels.cpu import tiled_cpu
from rlpheads.kernels.random_label_loss import random_label_loss
from rlpheads.kernels.rows.kernel import PassArguments
from rlpheads.kernels.rows.partials import ClassRange, LogitGradient, Needs
from rlpheads.kernels.rows.row_softmax import merge_partials, row_labels
from rlpheads.kernels.rows.terms import TERMS
from rlpheads.kernels.stages import LocalHead, attach_class_gradients, local_feature_gradient

kinds = pytest.mark.parametrize("kind", KINDS)


TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-5}
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=["plain, float64", "native, float32"])


def compare_random_problems(num_problems: int, first_seed: int, dtype: torch.dtype) -> None:
    """The tiles' results against the reference's in float64 on the same inputs; float32 is what the C++ computes."""
    for seed in range(first_seed, first_seed + num_problems):
        draw = torch.Generator().manual_seed(seed)
        num_rows, num_labels = (int(torch.randint(low, high, (), generator=draw)) for low, high in ((1, 9), (2, 60)))
        spread = (0.01, 0.3, 1.0, 5.0, 30.0)[seed % 5]
        problem = make_problem(seed, num_rows, num_labels, spread=spread).to(dtype)
        kind = KINDS[seed % 4]
        upstream_B = torch.randn(num_rows, generator=draw, dtype=torch.float64)
        budget = (None, 0, dtype.itemsize * num_rows * 20)[seed % 3]
        tiled = evaluate(problem, kind, "tiled_cpu", upstream_B=upstream_B.to(dtype), memory_budget=budget)
        truth = evaluate(problem.to(torch.float64), kind, "reference", upstream_B=upstream_B.to(dtype).double())
        tolerance = TOLERANCES[dtype] * max(spread, 1)  # a logit's rounding is a relative error of its exponential
        near_tie_B = truth["margin_B"].abs() < tolerance
        truth["hit_B"] = torch.where(near_tie_B, tiled["hit_B"], truth["hit_B"])
        assert_same(tiled, truth, tolerance)


@pytest.mark.long
@dtypes
def test_hundreds_of_random_problems(dtype: torch.dtype, small_tiles: int) -> None:
    compare_random_problems(250, first_seed=0, dtype=dtype)


@pytest.mark.slow
@dtypes
def test_ten_thousand_random_problems(dtype: torch.dtype, small_tiles: int) -> None:
    compare_random_problems(10_000, first_seed=1000, dtype=dtype)


@kinds
@pytest.mark.parametrize("num_labels", [16383, 16384, 16385, 40_011])
def test_around_the_size_of_a_tile(kind: str, num_labels: int) -> None:
    problem = make_problem(3, 3, num_labels, num_features=2, spread=3.0)
    assert_same(evaluate(problem, kind, "tiled_cpu"), evaluate(problem, kind, "reference"), 1e-11)


@pytest.mark.long
@dtypes
@given(
    num_rows=st.integers(0, 12),
    num_labels=st.integers(2, 80),
    num_features=st.integers(1, 9),
    seed=st.integers(0, 5),
    kind=st.sampled_from(KINDS),
    kept=st.integers(0, 90),
)
def test_any_shape(
    dtype: torch.dtype, num_rows: int, num_labels: int, num_features: int, seed: int, kind: str, kept: int
) -> None:
    problem = make_problem(seed, num_rows, num_labels, num_features=num_features).to(dtype)
    tiled = evaluate(problem, kind, "tiled_cpu", memory_budget=dtype.itemsize * num_rows * kept)
    assert_same(tiled, evaluate(problem.to(torch.float64), kind, "reference"), TOLERANCES[dtype])


# --------------------------------------------------------------------------------------------------------------- memory


def largest_saved(memory_budget: int | None, num_rows: int, num_labels: int) -> int:
    """Elements of the largest tensor that autograd keeps for backward."""
    problem = make_problem(1, num_rows, num_labels).to(torch.float32)
    weight_KD, features_BD = problem.weight_KD.requires_grad_(), problem.features_BD.requires_grad_()
    sizes = [0]

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        random_label_loss(
            features_BD,
            weight_KD,
            problem.labels_B,
            regularizer="entropy",
            joint=True,
            impl="tiled_cpu",
            memory_budget=memory_budget,
        )
    return max(sizes)


def test_no_logits_are_saved_beyond_the_budget(small_tiles: int) -> None:
    num_rows, num_labels, num_features = 64, 100, 5
    whole = num_rows * num_labels
    assert largest_saved(None, num_rows, num_labels) == whole
    assert largest_saved(4 * whole, num_rows, num_labels) == whole
    assert largest_saved(4 * whole - 1, num_rows, num_labels) == num_rows * 98  # 14 tiles of 7
    assert largest_saved(4 * 50 * num_rows, num_rows, num_labels) == num_rows * 49
    per_tile = num_rows * 15  # a shift and a scale for each row and tile: K/16384 of them in earnest
    assert largest_saved(0, num_rows, num_labels) <= max(per_tile, num_labels * num_features)


@pytest.mark.parametrize("frozen", ["weight", "all"])
def test_nothing_is_kept_that_no_gradient_needs(frozen: str, small_tiles: int) -> None:
    problem = make_problem(2, 4, 50)
    features_BD = problem.features_BD.requires_grad_(frozen == "weight")
    head = ClassRange(problem.weight_KD, None, 0, 50)
    needs = Needs("entropy", feature_gradient=frozen == "weight", class_gradients=False, memory_budget=10**9)
    _, products, exponentials = tiled_cpu.local_partials(features_BD.detach(), head, problem.labels_B[None], needs)
    assert exponentials.flat.numel() == 0
    assert products.exp_weight_BD.shape[0] == (4 if frozen == "weight" else 0)


# --------------------------------------------------------------------------------------------------------- class ranges


@kinds
@pytest.mark.parametrize("cuts", [(0, 50), (0, 1, 50), (0, 13, 14, 37, 50), (0, 49, 50)], ids=str)
@pytest.mark.parametrize("seed", [1, 3])
@dtypes
def test_class_ranges_combine_to_the_whole(
    dtype: torch.dtype, kind: str, cuts: tuple[int, ...], seed: int, small_tiles: int
) -> None:
    problem = make_problem(seed, 8, 50, spread=6.0).to(dtype)
    expected = evaluate(problem.to(torch.float64), kind, "reference")
    labels = problem.row_labels(dtype)
    weight_KD, bias_K = problem.weight_KD.requires_grad_(), problem.bias_K.requires_grad_()
    heads = [ClassRange(weight_KD[start:stop], bias_K[start:stop], start, 50) for start, stop in pairwise(cuts)]
    needs = Needs(kind, feature_gradient=True, class_gradients=True, memory_budget=dtype.itemsize * 8 * 10)
    stage_one = [tiled_cpu.local_partials(problem.features_BD, head.detach(), labels.index_LB, needs) for head in heads]
    rows = merge_partials([partials for partials, _, _ in stage_one], labels, 50)

    term, cross_entropy = TERMS[kind], TERMS["cross_entropy"]
    gradient_BD = sum(
        local_feature_gradient(head, labels.index_LB, rows.shift_B, term.coefficients(rows), partials, products)
        for head, (partials, products, _) in zip(heads, stage_one, strict=True)
    )
    value_B = cross_entropy.value_B(rows)
    by_range = [
        attach_class_gradients(
            value_B,
            [LocalHead(problem.features_BD, head, exponentials)],
            rows,
            cross_entropy.coefficients(rows),
            tiled_cpu,
        )
        for head, (_, _, exponentials) in zip(heads, stage_one, strict=True)
    ]
    weight_gradient, bias_gradient = torch.autograd.grad(sum(part_B.sum() for part_B in by_range), (weight_KD, bias_K))
    actual = {
        "cross_entropy_B": value_B,
        "regularizer_B": term.value_B(rows),
        "hit_B": rows.hit,
        "margin_B": rows.margin,
        "lse_B": rows.lse,
        "weight_gradient": weight_gradient,
        "bias_gradient": bias_gradient,
        "regularizer_gradient": gradient_BD.detach(),
    }
    tolerance = TOLERANCES[dtype] * (6 if dtype is torch.float32 else 1)  # a logit's rounding, at this spread
    assert_same(actual, {name: expected[name] for name in actual}, tolerance)


def test_ties_across_class_ranges_go_to_the_lowest_label() -> None:
    features_BD, weight_KD = torch.ones(20, 1), torch.zeros(20, 1)
    labels = row_labels(torch.arange(20)[None], None, torch.float32)
    needs = Needs(None, feature_gradient=False, class_gradients=False, memory_budget=0)
    parts = [
        tiled_cpu.local_partials(
            features_BD, ClassRange(weight_KD[start : start + 5], None, start, 20), labels.index_LB, needs
        )
        for start in (0, 5, 10, 15)
    ]
    rows = merge_partials([partials for partials, _, _ in parts], labels, 20)
    assert rows.hit.tolist() == [True] + [False] * 19


# -------------------------------------------------------------------------------------------------------------- tracing


def tiny_step(
    features_BD: Tensor, weight_KD: Tensor, bias_K: Tensor, labels_LB: Tensor, first_B: Tensor, *, impl: str
) -> Tensor:
    loss = random_label_loss(
        features_BD,
        weight_KD,
        labels_LB[0],
        bias_K=bias_K,
        pair=(labels_LB[1], first_B),
        regularizer="unlikelihood",
        joint=True,
        impl=impl,
    )
    return loss.cross_entropy_B.mean() + loss.regularizer_B.mean() + 0.1 * loss.joint_B.mean() + loss.hit_B.sum()


def step_inputs() -> tuple[Tensor, ...]:
    head = (torch.randn(8, 6).requires_grad_(), torch.randn(40, 6).requires_grad_(), torch.zeros(40).requires_grad_())
    return (*head, torch.randint(40, (2, 8)), torch.rand(8))


@pytest.mark.parametrize("impl", ["tiled_cpu", "reference"])
@kinds
def test_forward_and_backward_under_fake_tensors(impl: str, kind: str, small_tiles: int) -> None:
    """No look at a tensor's value anywhere in a step, and the shapes and dtypes of the real thing."""
    real = evaluate(make_problem(3, 4, 30).to(torch.bfloat16), kind, impl, memory_budget=4 * 4 * 20)
    with FakeTensorMode():
        fake = evaluate(make_problem(3, 4, 30).to(torch.bfloat16), kind, impl, memory_budget=4 * 4 * 20)
    assert fake.keys() == real.keys()
    assert all(isinstance(value, FakeTensor) for value in fake.values())
    assert all((fake[name].shape, fake[name].dtype) == (real[name].shape, real[name].dtype) for name in real)


@pytest.mark.long
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("impl", ["tiled_cpu", "batched"])
def test_compiles_into_one_graph(impl: str, backend: str, dynamic: bool) -> None:
    torch.manual_seed(0)
    inputs = step_inputs()
    eager = partial(tiny_step, impl=impl)
    compiled = torch.compile(eager, fullgraph=True, backend=backend, dynamic=dynamic)
    expected, actual = (torch.autograd.grad(step(*inputs), inputs[:3]) for step in (eager, compiled))
    for one, two in zip(expected, actual, strict=True):
        torch.testing.assert_close(two, one)


def test_operators_pass_torchs_own_check(small_tiles: int) -> None:
    problem = make_problem(3, 4, 30).to(torch.float32)
    labels_LB = torch.stack([problem.labels_B, problem.pair[0]])
    head = ClassRange(problem.weight_KD, problem.bias_K, 0, 30)
    first = PassArguments(problem.features_BD, head, labels_LB, Needs("entropy", True, True, 14 * 4 * 4))
    check_operator("tiled_cpu_partials", first)
    exponentials = tiled_cpu.local_partials(*first)[-1]
    gradient = LogitGradient(torch.rand_like(exponentials.tile_shift_CB), torch.rand(2, 4))
    last = tiled_cpu.GradientArguments(*first[:3], exponentials, gradient, True, True)
    check_operator("tiled_cpu_class_gradients", last)
