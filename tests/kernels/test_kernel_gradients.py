"""Gradients against finite differences, in float64, of each loss with respect to what it trains."""

import pytest
from kernel_problems import IMPLS, KINDS, make_problem
from torch import Tensor
from torch.autograd import gradcheck

from rlpheads.kernels.random_label_loss import random_label_loss

impls = pytest.mark.parametrize("impl", IMPLS)
# The seed decides: 1 bias, 2 neither, 3 bias and pair, 6 pair.
seeds = pytest.mark.parametrize("seed", [1, 2, 3, 6])
spreads = pytest.mark.parametrize("spread", [0.1, 3.0])


def agrees_with_finite_differences(function, inputs: tuple[Tensor, ...]) -> bool:
    return gradcheck(function, inputs, eps=1e-5, atol=1e-6, rtol=0, raise_exception=True)


@impls
@seeds
@spreads
@pytest.mark.parametrize("memory_budget", [None, 0])
def test_cross_entropy_with_respect_to_the_head(
    impl: str, seed: int, spread: float, memory_budget: int | None, tile_classes: int
) -> None:
    problem = make_problem(seed, 4, 16, num_features=3, spread=spread)

    def cross_entropy(weight_KD: Tensor, bias_K: Tensor | None = None) -> Tensor:
        return random_label_loss(
            problem.features_BD,
            weight_KD,
            problem.labels_B,
            bias_K=bias_K,
            pair=problem.pair,
            impl=impl,
            memory_budget=memory_budget,
        ).cross_entropy_B

    head = (problem.weight_KD,) if problem.bias_K is None else (problem.weight_KD, problem.bias_K)
    assert agrees_with_finite_differences(cross_entropy, tuple(tensor.requires_grad_() for tensor in head))


@impls
@seeds
@spreads
@pytest.mark.parametrize("kind", KINDS)
def test_regularizer_and_joint_with_respect_to_the_features(
    impl: str, seed: int, spread: float, kind: str, tile_classes: int
) -> None:
    problem = make_problem(seed, 4, 16, num_features=3, spread=spread)

    def feature_losses(features_BD: Tensor) -> tuple[Tensor | None, Tensor | None]:
        loss = random_label_loss(
            features_BD,
            problem.weight_KD,
            problem.labels_B,
            bias_K=problem.bias_K,
            pair=problem.pair,
            regularizer=kind,
            joint=True,
            impl=impl,
        )
        return loss.regularizer_B, loss.joint_B

    assert agrees_with_finite_differences(feature_losses, (problem.features_BD.requires_grad_(),))
