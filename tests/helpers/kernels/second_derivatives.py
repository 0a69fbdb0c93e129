"""Ways to differentiate the loss twice; also runs in the interpreter's process."""

from collections.abc import Callable

import pytest
import torch
from kernel_problems import make_problem
from torch import Tensor

from rlpheads.kernels.random_label_loss import random_label_loss

Function = Callable[[Tensor], Tensor]

ROUTES = {
    "weight": ("weight_KD", "cross_entropy_B"),
    "bias": ("bias_K", "cross_entropy_B"),
    "features": ("features_BD", "regularizer_B"),
    "joint": ("features_BD", "joint_B"),
}
"""What a loss is a function of, and which loss that is."""


def losses_of(route: str, impl: str, num_labels: int, dtype: torch.dtype) -> tuple[Function, Tensor]:
    """The sum of a loss as a function of what it trains, through a tensor that nothing else keeps; and where it is taken."""
    problem, (argument, term) = make_problem(1, 40, num_labels).to(dtype), ROUTES[route]
    given = {name: getattr(problem, name) for name in ("features_BD", "weight_KD", "bias_K")}

    def total(tensor: Tensor) -> Tensor:
        loss = random_label_loss(
            labels=problem.labels_B, regularizer="uniform", joint=True, impl=impl, **{**given, argument: 1 * tensor}
        )
        return getattr(loss, term).sum()

    return total, given[argument].requires_grad_()


def penalty(function: Function, tensor: Tensor) -> Tensor:
    """The squared norm of the gradient, as a function of the tensor."""
    (gradient,) = torch.autograd.grad(function(tensor), tensor, create_graph=True)
    return gradient.square().sum()


def by_backward(function: Function, tensor: Tensor, inputs: list[Tensor] | None) -> Tensor | None:
    """Derivative of the penalty and a term beside it, as `.backward` leaves it."""
    (penalty(function, tensor) + tensor.square().sum()).backward(inputs=inputs)
    return tensor.grad


def in_the_upstream(function: Function, tensor: Tensor) -> Tensor:
    """Derivative of the gradient in its factor."""
    factor = torch.ones((), dtype=tensor.dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(factor * function(tensor), tensor, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), factor)[0]


WAYS: dict[str, Callable[[Function, Tensor], object]] = {
    "hessian": lambda function, tensor: torch.autograd.functional.hessian(function, tensor),
    "hvp": lambda function, tensor: torch.autograd.functional.hvp(function, tensor, torch.ones_like(tensor)),
    "penalty": lambda function, tensor: torch.autograd.grad(penalty(function, tensor), tensor),
    "penalty and more": lambda function, tensor: torch.autograd.grad(
        penalty(function, tensor) + tensor.square().sum(), tensor
    ),
    "backward": lambda function, tensor: by_backward(function, tensor, None),
    "backward into inputs": lambda function, tensor: by_backward(function, tensor, [tensor]),
    "in the upstream": in_the_upstream,
}


def assert_refused(impl: str, way: str, route: str, num_labels: int, dtype: torch.dtype = torch.float64) -> None:
    with pytest.raises(RuntimeError, match="differentiated twice.*pass impl='reference'"):
        WAYS[way](*losses_of(route, impl, num_labels, dtype))
