"""Second derivatives: right with the reference, refused by name with all else, however they are asked for."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import second_derivatives
import torch
from second_derivatives import ROUTES, WAYS, losses_of
from torch import Tensor
from triton_interpreter import Interpreter

from rlpheads.kernels.random_label_loss import random_label_loss

ways = pytest.mark.parametrize("way", WAYS)
routes = pytest.mark.parametrize("route", ROUTES)
impls = pytest.mark.parametrize(
    ("impl", "num_labels"), [("batched", 11), ("tiled_cpu", 11), ("auto", 11), ("auto", 2000)]
)
"""`auto` takes `batched` for few labels and `tiled_cpu` for many."""


@impls
@routes
@ways
def test_refused_by_name(impl: str, num_labels: int, route: str, way: str) -> None:
    second_derivatives.assert_refused(impl, way, route, num_labels)


@pytest.mark.long
@routes
@ways
def test_refused_by_name_by_triton(interpreter: Interpreter, route: str, way: str) -> None:
    interpreter(second_derivatives.assert_refused, "triton", way, route, 20, torch.float32)


@routes
def test_the_reference_is_right(route: str) -> None:
    """Against a difference of gradients."""
    function, tensor = losses_of(route, "reference", 11, torch.float64)
    direction, step = torch.ones_like(tensor), 1e-5
    found = torch.autograd.functional.hvp(function, tensor, direction)[1]

    def gradient(at: Tensor) -> Tensor:
        return torch.autograd.functional.vjp(function, at)[1]

    expected = (gradient(tensor + step * direction) - gradient(tensor - step * direction)) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@impls
@routes
def test_the_first_derivative_is_the_same_with_a_graph(impl: str, num_labels: int, route: str) -> None:
    function, tensor = losses_of(route, impl, num_labels, torch.float32)
    plain, with_graph = (
        torch.autograd.grad(function(tensor), tensor, create_graph=create_graph)[0] for create_graph in (False, True)
    )
    assert with_graph.requires_grad
    assert not plain.requires_grad
    assert torch.equal(plain, with_graph)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What a cycle of references keeps stays."""
    gc.disable()
    yield
    gc.enable()


@impls
@routes
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_loss_that_is_dropped_leaves_nothing_behind(
    impl: str, num_labels: int, route: str, create_graph: bool, no_collector: None
) -> None:
    function, tensor = losses_of(route, impl, num_labels, torch.float32)
    doubled = 2 * tensor

    def lives_as_long_as_the_graph(*_: object) -> None:
        """A hook of a node in front of the loss."""

    doubled.grad_fn.register_hook(lives_as_long_as_the_graph)
    left = weakref.ref(lives_as_long_as_the_graph)
    loss = function(doubled)
    (gradient,) = torch.autograd.grad(loss, tensor, create_graph=create_graph)
    del doubled, lives_as_long_as_the_graph
    assert left() is not None
    del loss, gradient
    assert left() is None


class _Stopped(torch.autograd.Function):
    """Identity that hands no gradient on."""

    @staticmethod
    def forward(ctx: Any, value_B: Tensor) -> Tensor:  # noqa: ARG004
        return value_B.clone()

    @staticmethod
    def backward(ctx: Any, upstream_B: Tensor) -> None:  # noqa: ARG004
        return None


@pytest.mark.parametrize("impl", ["batched", "tiled_cpu"])
def test_no_upstream_is_no_gradient(impl: str) -> None:
    weight_KD = torch.randn(10, 4, requires_grad=True)
    loss = random_label_loss(torch.randn(8, 4), weight_KD, torch.zeros(8, dtype=torch.int64), impl=impl)
    _Stopped.apply(loss.cross_entropy_B).sum().backward()
    assert weight_KD.grad is None
