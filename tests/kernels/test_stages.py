"""The three stages over class ranges: what the ranges add up to is what the whole head gives."""

from itertools import pairwise

import pytest
import torch
from kernel_problems import KINDS, Problem, assert_same, evaluate, make_problem
from torch import Tensor

from rlpheads.kernels.implementations import IMPLS
from rlpheads.kernels.rows.partials import ClassRange, LogitGradient, Needs
from rlpheads.kernels.rows.row_softmax import merge_partials
from rlpheads.kernels.rows.terms import TERMS
from rlpheads.kernels.stages import KERNELS, local_feature_gradient

EDGES = [(0, 23), (0, 1, 9, 23), (0, 0, 12, 12, 22, 23, 23)]


def evaluate_ranges(problem: Problem, kind: str, edges: tuple[int, ...], impls: list[str]) -> dict[str, Tensor]:
    """`kernel_problems.evaluate` of a head cut at these edges."""
    num_labels = len(problem.weight_KD)
    labels = problem.row_labels(torch.float64)
    needs = Needs(kind, feature_gradient=True, class_gradients=True, memory_budget=8 * 6 * 4)
    heads = [
        ClassRange(
            problem.weight_KD[start:stop],
            None if problem.bias_K is None else problem.bias_K[start:stop],
            start,
            num_labels,
        )
        for start, stop in pairwise(edges)
    ]
    passes = [
        KERNELS[impl].local_partials(problem.features_BD, head, labels.index_LB, needs)
        for head, impl in zip(heads, impls, strict=True)
    ]
    rows = merge_partials([partials for partials, _, _ in passes], labels, num_labels)
    results = {"hit_B": rows.hit, "margin_B": rows.margin, "lse_B": rows.lse}
    for name, term in (("regularizer", kind), ("joint", "cross_entropy")):
        results[f"{name}_B"] = TERMS[term].value_B(rows)
        coefficients = TERMS[term].coefficients(rows)
        results[f"{name}_gradient"] = sum(
            local_feature_gradient(head, labels.index_LB, rows.shift_B, coefficients, partials, products)
            for head, (partials, products, _) in zip(heads, passes, strict=True)
        )
    coefficients = TERMS["cross_entropy"].coefficients(rows)
    parts = [
        KERNELS[impl].local_class_gradients(
            problem.features_BD,
            head,
            labels.index_LB,
            kept,
            LogitGradient(coefficients.exp_B * torch.exp(kept.tile_shift_CB - rows.shift_B), coefficients.label_LB),
            (True, problem.bias_K is not None),
        )
        for head, impl, (_, _, kept) in zip(heads, impls, passes, strict=True)
    ]
    results["weight_gradient"] = torch.cat([weight for weight, _ in parts])
    if problem.bias_K is not None:
        results["bias_gradient"] = torch.cat([bias for _, bias in parts])
    return results


@pytest.mark.parametrize("edges", EDGES, ids=["whole", "ragged", "empty ranges"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("tiled", [False, True], ids=["reference", "tiled"])
def test_ranges_add_up_to_the_whole_head(edges, kind, seed, tiled, small_tiles):
    """Empty ranges are the reference's."""
    problem = make_problem(seed, 6, 23, spread=3.0)
    sizes = [stop - start for start, stop in pairwise(edges)]
    impls = ["tiled_cpu" if tiled and size else "reference" for size in sizes]
    actual = evaluate_ranges(problem, kind, edges, impls)
    expected = evaluate(problem, kind, "reference")
    assert_same(actual, {name: expected[name] for name in actual}, 1e-12)


def test_every_implementation_but_the_batched_one_has_stages() -> None:
    assert {"auto", "batched", *KERNELS} == set(IMPLS)


def test_ties_between_ranges_go_to_the_lowest_label():
    features_BD = torch.ones(3, 1, dtype=torch.float64)
    weight_KD = torch.tensor([[0.0], [1.0], [0.5], [1.0]], dtype=torch.float64)
    problem = Problem(features_BD, weight_KD, torch.tensor([1, 3, 0]))
    actual = evaluate_ranges(problem, "uniform", (0, 2, 4), ["reference", "reference"])
    assert actual["hit_B"].tolist() == [True, False, False]
    assert actual["margin_B"].tolist() == [0.0, 0.0, -1.0]
