"""Gradients that are used up where they are made: their norm, and an optimizer's step, against the gradient written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlpheads.kernels import native
from rlpheads.kernels.head_gradient import HeadGradient
from rlpheads.kernels.random_label_loss import random_label_losses
from rlpheads.kernels.rows.updates import AdamRule, SgdRule

NEVER = torch.tensor(False)


def handed_over(
    num_rows: int,
    num_labels: int,
    dim: int,
    *,
    budget: int = 2**28,
    pair: bool = False,
    dtype: torch.dtype = torch.float32,
) -> HeadGradient:
    """What the backward pass hands over of a head whose rows have random labels and weights."""
    generator = torch.Generator().manual_seed(num_rows + num_labels + dim)
    features_BD = torch.randn(num_rows, dim, generator=generator).to(dtype)
    weight_KD = torch.randn(num_labels, dim, generator=generator).to(dtype).requires_grad_()
    bias_K = torch.randn(num_labels, generator=generator).to(dtype).requires_grad_()
    labels_B, second_B = torch.randint(num_labels, (2, num_rows), generator=generator)
    second_B[::3] = labels_B[::3]
    taken: list[HeadGradient] = []
    loss = random_label_losses(
        features_BD,
        [weight_KD],
        [labels_B],
        biases=[bias_K],
        pairs=[(second_B, torch.rand(num_rows, generator=generator))] if pair else None,
        impl="tiled_cpu",
        memory_budget=budget,
        consumer=taken.append,
    ).by_head()[0]
    (loss.cross_entropy_B * torch.rand(num_rows, generator=generator)).sum().backward()
    assert weight_KD.grad is None
    assert bias_K.grad is None
    (gradient,) = taken
    assert gradient.weight is weight_KD
    return gradient


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@given(
    num_rows=st.integers(1, 70),
    num_labels=st.integers(2, 400),
    dim=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.5, 2.0]),
    pair=st.booleans(),
)
def test_survey_is_that_of_the_gradient_written_out(num_rows, num_labels, dim, share, pair):
    """For more and for fewer rows than features, with exponentials that are kept and computed again."""
    gradient = handed_over(num_rows, num_labels, dim, budget=int(share * 4 * num_rows * num_labels), pair=pair)
    weight_KD, bias_K = gradient.make()
    bias_found_K, squared = gradient.survey()
    assert error(bias_found_K, bias_K) <= 1e-5
    assert float(squared) == pytest.approx(float(weight_KD.double().square().sum()), rel=1e-5)


@given(
    num_rows=st.integers(1, 70), num_labels=st.integers(2, 400), dim=st.integers(1, 90), rule=st.sampled_from("asn0")
)
def test_a_step_is_that_of_the_optimizer(num_rows, num_labels, dim, rule):
    """What the pass finds beside it is what a survey does; the norm is within its bound."""
    gradient = handed_over(num_rows, num_labels, dim)
    bias_K, squared = gradient.survey()
    assert gradient.norm_bound() >= (1 - 1e-6) * squared.sqrt()
    expected = torch.nn.Parameter(gradient.weight.detach().clone())
    expected.grad, _ = gradient.make()
    zeros = [torch.zeros_like(expected) for _ in range(2)]
    if rule == "a":
        optimizer = torch.optim.AdamW([expected], lr=0.01, weight_decay=0.1, eps=1e-4, fused=True)
        rule, states = AdamRule(0.01, 0.1, 0.9, 0.999, 1e-4, decoupled=True), [*zeros, torch.zeros(())]
    else:
        momentum = 0.0 if rule == "0" else 0.9
        settings = {"momentum": momentum, "nesterov": rule == "n", "weight_decay": 0.1}
        optimizer = torch.optim.SGD([expected], lr=0.1, **settings, fused=True)
        rule, states = SgdRule(0.1, 0.1, momentum, nesterov=rule == "n"), zeros[: int(momentum > 0)]
    bias_found_K, squared_found = gradient.update(rule, states, NEVER)
    optimizer.step()
    assert torch.equal(bias_found_K, bias_K)
    assert float(squared_found) == pytest.approx(float(squared), rel=1e-5)
    torch.testing.assert_close(gradient.weight, expected, rtol=2e-6, atol=2e-7)


def test_a_step_that_is_left_out_changes_neither_weight_nor_states():
    gradient = handed_over(8, 300, 16)
    states = [torch.ones(300, 16), torch.ones(300, 16), torch.tensor(3.0)]
    before = [tensor.detach().clone() for tensor in (gradient.weight, *states)]
    gradient.update(AdamRule(0.01, 0.1, 0.9, 0.999, 1e-8, decoupled=True), states, torch.tensor(True))
    assert all(torch.equal(now, then) for now, then in zip((gradient.weight, *states), before, strict=True))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_any_number_of_threads_takes_the_same_step(num_threads):
    gradient = handed_over(16, 5000, 24)
    before = torch.get_num_threads()
    weights = []
    try:
        for threads in (2, num_threads):
            torch.set_num_threads(threads)
            copy = gradient._replace(head=gradient.head._replace(weight_KD=gradient.weight.detach().clone()))
            copy.update(SgdRule(0.1, 0.0, 0.0, nesterov=False), [], NEVER)
            weights.append(copy.weight)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*weights)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_shows_in_the_norm(value):
    gradient = handed_over(8, 300, 16)
    scale_CB = gradient.gradient.scale_CB.clone()
    scale_CB[0, 3] = value
    spoiled = gradient._replace(gradient=gradient.gradient._replace(scale_CB=scale_CB))
    bias_K, squared = spoiled.survey()
    assert not squared.isfinite()
    assert not spoiled.norm_bound().isfinite()
    assert not bias_K.isfinite().all()


def test_without_the_library_the_gradient_is_made_for_its_norm(monkeypatch):
    monkeypatch.setattr(native, "load_library", lambda: None)
    gradient = handed_over(8, 300, 16)
    assert not gradient.in_tiles
    weight_KD, bias_K = gradient.make()
    bias_found_K, squared = gradient.survey()
    assert torch.equal(bias_found_K, bias_K)
    assert float(squared) == pytest.approx(float(weight_KD.double().square().sum()), rel=1e-6)


def test_wider_numbers_are_not_served_in_tiles():
    assert not handed_over(8, 300, 16, dtype=torch.float64).in_tiles


def test_what_is_handed_over_can_be_scaled():
    gradient = handed_over(8, 300, 16)
    doubled = gradient.scaled(torch.tensor(2.0)).make()
    for found, single in zip(doubled, gradient.make(), strict=True):
        torch.testing.assert_close(found, 2 * single)


def test_a_head_whose_weight_is_fixed_hands_nothing_over():
    taken = []
    bias_K = torch.zeros(300, requires_grad=True)
    labels = torch.zeros(8, dtype=torch.long)
    loss = random_label_losses(
        torch.randn(8, 16), [torch.randn(300, 16)], [labels], biases=[bias_K], impl="tiled_cpu", consumer=taken.append
    ).by_head()[0]
    loss.cross_entropy_B.sum().backward()
    assert taken == []
    assert bias_K.grad is not None
