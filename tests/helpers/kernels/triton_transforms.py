"""Function transforms of the loss; also runs in the interpreter's process."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_problems import Problem, make_problem
from torch import Tensor
from torch.autograd import forward_ad

from rlpheads.kernels.random_label_loss import random_label_loss

Function = Callable[[Tensor], Tensor]


def forward_tangent(function: Function, tensor: Tensor) -> Tensor | None:
    """Derivative in the direction of ones, by dual numbers."""
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(tensor, torch.ones_like(tensor))
        return forward_ad.unpack_dual(function(dual)).tangent


TRANSFORMS: dict[str, Callable[[Function, Tensor], Any]] = {
    "grad": lambda function, tensor: torch.func.grad(function)(tensor),
    "vjp": lambda function, tensor: torch.func.vjp(function, tensor)[1](torch.ones((), dtype=tensor.dtype))[0],
    "jacrev": lambda function, tensor: torch.func.jacrev(function)(tensor),
    "jacfwd": lambda function, tensor: torch.func.jacfwd(function)(tensor),
    "jvp": lambda function, tensor: torch.func.jvp(function, (tensor,), (torch.ones_like(tensor),))[1],
    "forward_ad": forward_tangent,
    "vmap": lambda function, tensor: torch.func.vmap(function)(torch.stack([tensor, tensor])),
    "vmap of grad": lambda function, tensor: torch.func.vmap(torch.func.grad(function))(torch.stack([tensor, tensor])),
}


def batch_of_gradients(function: Function, tensor: Tensor) -> Tensor:
    """The gradient under two upstreams at once."""
    tensor = tensor.detach().requires_grad_()
    upstreams = torch.ones(2, dtype=tensor.dtype)
    return torch.autograd.grad(function(tensor), tensor, upstreams, is_grads_batched=True)[0]


def vmap_of_backward(function: Function, tensor: Tensor) -> Tensor:
    """The same, in a transform of the backward alone."""
    tensor = tensor.detach().requires_grad_()
    loss = function(tensor)
    return torch.func.vmap(lambda upstream: torch.autograd.grad(loss, tensor, upstream)[0])(
        torch.ones(2, dtype=tensor.dtype)
    )


def tangent_of_backward(function: Function, tensor: Tensor) -> Tensor | None:
    """Derivative of the gradient in the direction of its upstream."""
    tensor = tensor.detach().requires_grad_()
    loss = function(tensor)
    with forward_ad.dual_level():
        upstream = forward_ad.make_dual(torch.ones_like(loss), torch.ones_like(loss))
        return forward_ad.unpack_dual(torch.autograd.grad(loss, tensor, upstream)[0]).tangent


TRANSFORMS |= {
    "is_grads_batched": batch_of_gradients,
    "vectorize": lambda function, tensor: torch.autograd.functional.jacobian(function, tensor, vectorize=True),
    "vmap of backward": vmap_of_backward,
    "forward_ad of backward": tangent_of_backward,
}

ASKED = {
    **dict.fromkeys(("grad", "vjp", "jacrev", "vmap of grad"), "torch.func.grad, vjp or jacrev"),
    **dict.fromkeys(("jvp", "jacfwd"), "torch.func.jvp or jacfwd"),
    **dict.fromkeys(("vmap", "vmap of backward"), "torch.func.vmap"),
    **dict.fromkeys(("forward_ad", "forward_ad of backward"), "torch.autograd.forward_ad"),
    **dict.fromkeys(("is_grads_batched", "vectorize"), "torch.autograd with batches of gradients"),
}
"""What the refusal calls it."""


def losses_of(problem: Problem, impl: str) -> Function:
    """The sum of a regularizer as a function of the features."""

    def total(features_BD: Tensor) -> Tensor:
        loss = random_label_loss(features_BD, problem.weight_KD, problem.labels_B, regularizer="uniform", impl=impl)
        assert loss.regularizer_B is not None
        return loss.regularizer_B.sum()

    return total


def assert_refused(impl: str, transform: str, num_labels: int, dtype: torch.dtype = torch.float64) -> None:
    problem = make_problem(1, 40, num_labels).to(dtype)
    with pytest.raises(RuntimeError, match=f"called under {re.escape(ASKED[transform])}.*pass impl='reference'"):
        TRANSFORMS[transform](losses_of(problem, impl), problem.features_BD)
