"""Reduction of per-row losses: the mean over the global batch, on any number of ranks and micro-batches."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rlpheads.memorization.heads.combined_loss import TermWeights, combine_losses
from rlpheads.memorization.heads.head_losses import HeadLosses

T, R, M = 3, 2, 2


def losses_of(cross_entropy: Tensor, regularizer: Tensor | None = None, joint: Tensor | None = None) -> HeadLosses:
    unused = torch.zeros(())
    return HeadLosses(cross_entropy, regularizer, joint, unused, unused, unused)


def random_losses(num_rows: int) -> HeadLosses:
    generator = torch.Generator().manual_seed(num_rows)
    return losses_of(*(torch.randn(taps, M, num_rows, generator=generator, dtype=torch.float64) for taps in (T, R, T)))


def rows_of(losses: HeadLosses, rows: slice) -> HeadLosses:
    return losses_of(*(values[..., rows] for values in losses[:3]))


def test_mean_over_rows_and_draws_sum_over_taps():
    losses = random_losses(5)
    combined = combine_losses(losses, torch.ones(5, dtype=torch.bool), 5, 1, TermWeights(factor=2.0, joint=0.5))
    scalars = combined.scalars
    means = [values.mean((1, 2)).sum() for values in losses[:3]]
    torch.testing.assert_close(combined.heads, means[0])
    torch.testing.assert_close(combined.backbone, 2.0 * means[1] + 0.5 * means[2])
    torch.testing.assert_close(combined.total, means[0] + 2.0 * means[1] + 0.5 * means[2])
    assert list(scalars) == ["head_cross_entropy", "regularizer", "joint"]
    torch.testing.assert_close(list(scalars.values()), means)


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=4, max_size=12),
)
def test_ranks_and_micro_batches_of_any_size_give_the_mean_over_the_global_batch(world_size, pieces):
    """The pieces (valid rows, padding rows) are micro-batches, dealt out to the ranks in turn."""
    num_rows = sum(valid for valid, _ in pieces)
    if num_rows == 0:
        return
    losses, weights = random_losses(num_rows), TermWeights(factor=0.7, joint=0.1)
    rank_totals = [torch.zeros((), dtype=torch.float64) for _ in range(world_size)]
    first = 0
    for i, (valid, padding) in enumerate(pieces):
        own = rows_of(losses, slice(first, first + valid))
        padded = losses_of(*(torch.cat([v, v.new_full((*v.shape[:2], padding), math.nan)], -1) for v in own[:3]))
        valid_B = torch.arange(valid + padding) < valid
        rank_totals[i % world_size] += combine_losses(padded, valid_B, num_rows, world_size, weights).total
        first += valid
    whole = combine_losses(losses, torch.ones(num_rows, dtype=torch.bool), num_rows, 1, weights).total
    torch.testing.assert_close(sum(rank_totals) / world_size, whole)


@pytest.mark.parametrize("bad_value", [math.nan, math.inf, -math.inf])
def test_padding_rows_contribute_exactly_zero_and_get_no_gradient(bad_value):
    rows = [torch.ones(taps, M, 4) for taps in (T, R, T)]
    for values in rows:
        values[..., [1, 3]] = bad_value
        values.requires_grad_()
    valid_B = torch.tensor([True, False, True, False])
    combined = combine_losses(losses_of(*rows), valid_B, 2, 1, TermWeights(factor=1.0, joint=1.0))
    total, scalars = combined.total, combined.scalars
    assert total.item() == T + R + T
    assert [value.item() for value in scalars.values()] == [T, R, T]
    total.backward()
    for values in rows:
        assert values.grad.unique().tolist() == [0.0, 1 / (2 * M)]
        assert not values.grad[..., [1, 3]].any()


def test_a_batch_of_padding_alone_is_zero():
    rows = torch.full((T, M, 2), math.nan, requires_grad=True)
    total = combine_losses(losses_of(rows), torch.zeros(2, dtype=torch.bool), 7, 2, TermWeights()).total
    total.backward()
    assert total.item() == 0
    assert not rows.grad.any()


def test_a_term_of_weight_zero_is_measured_but_does_not_train():
    regularizer = torch.full((R, M, 3), math.inf, requires_grad=True)
    losses = losses_of(torch.ones(T, M, 3, requires_grad=True), regularizer)
    combined = combine_losses(losses, torch.ones(3, dtype=torch.bool), 3, 1, TermWeights())
    total, scalars = combined.total, combined.scalars
    total.backward()
    assert total.item() == T
    assert scalars["regularizer"].item() == math.inf
    assert regularizer.grad is None


def test_scalars_carry_no_graph():
    losses = losses_of(torch.ones(T, M, 3, requires_grad=True))
    scalars = combine_losses(losses, torch.ones(3) > 0, 3, 1, TermWeights()).scalars
    assert not any(value.requires_grad for value in scalars.values())


def test_combining_reads_nothing_back_from_the_device():
    """Fake tensors have no values: any read of one, or a branch on one, raises."""
    losses, valid_B = random_losses(4), torch.ones(4, dtype=torch.bool)
    with FakeTensorMode() as mode:
        fake = losses_of(*(mode.from_tensor(values) for values in losses[:3]))
        total = combine_losses(fake, mode.from_tensor(valid_B), 4, 1, TermWeights(factor=1.0, joint=1.0)).total
    assert total.shape == ()


def test_the_factor_per_label_is_lambda_over_k():
    assert TermWeights(factor=3.0).factor_per_label(1000) == pytest.approx(0.003)


def test_a_weight_for_a_term_that_was_not_computed_is_refused():
    losses, valid_B = losses_of(torch.ones(T, M, 2)), torch.ones(2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"regularizer term has weight 0.5"):
        combine_losses(losses, valid_B, 2, 1, TermWeights(factor=0.5))
    with pytest.raises(ValueError, match=r"joint term has weight 2.0"):
        combine_losses(losses, valid_B, 2, 1, TermWeights(joint=2.0))


@pytest.mark.parametrize("weights", [{"factor": -1.0}, {"joint": math.nan}, {"factor": math.inf}])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="finite and at least 0"):
        TermWeights(**weights)


@pytest.mark.parametrize("sizes", [(0, 1), (4, 0)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        combine_losses(random_losses(4), torch.ones(4, dtype=torch.bool), *sizes, TermWeights())
