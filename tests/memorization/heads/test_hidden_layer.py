"""Heads with a hidden layer or dropout: the gradient route of each loss."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rlpheads.memorization.heads.head_losses import HeadTerms
from rlpheads.memorization.heads.rlp_heads import RLPHeads

DIMS, NUM_LABELS, NUM_DRAWS, NUM_ROWS = (6, 9), 5, 2, 8


def heads_and_inputs(**changes) -> tuple[RLPHeads, list[Tensor], Tensor]:
    heads = RLPHeads(DIMS, NUM_LABELS, NUM_DRAWS, seed=0, dtype=torch.float64, **{"hidden": 7, **changes})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    taps = [torch.randn(NUM_ROWS, dim, generator=generator, dtype=torch.float64).requires_grad_() for dim in DIMS]
    return heads, taps, torch.randint(NUM_LABELS, (NUM_DRAWS, NUM_ROWS), generator=generator)


def plain_logits(heads: RLPHeads, taps: list[Tensor], t: int, m: int) -> Tensor:
    """The same network in plain autograd, with every gradient."""
    layer, head = heads.layers[t][m], heads.heads[t][m]
    hidden = torch.relu(F.layer_norm(taps[t], taps[t].shape[1:]) @ layer.weight.T + layer.bias)
    return hidden @ head.weight.T + head.bias


def plain_sum(heads: RLPHeads, taps: list[Tensor], labels_MB: Tensor, loss) -> Tensor:
    terms = [loss(plain_logits(heads, taps, t, m), labels_MB[m]) for t in range(len(DIMS)) for m in range(NUM_DRAWS)]
    return torch.stack(terms).sum()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


def unlikelihood(logits: Tensor, labels: Tensor) -> Tensor:
    p_B = logits.softmax(-1).gather(1, labels[:, None])
    return -torch.log1p(-p_B).sum()


def test_cross_entropy_trains_head_and_hidden_layer_alone():
    heads, taps, labels_MB = heads_and_inputs()
    losses = heads(taps, labels_MB, HeadTerms())
    plain = plain_sum(heads, taps, labels_MB, cross_entropy)
    torch.testing.assert_close(losses.cross_entropy_TMB.sum(), plain)
    expected = torch.autograd.grad(plain, list(heads.parameters()))
    losses.cross_entropy_TMB.sum().backward()
    for (name, parameter), gradient in zip(heads.named_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, msg=name)
    assert all(tap.grad is None for tap in taps)


@pytest.mark.parametrize("joint", [False, True])
def test_regularizer_and_joint_term_reach_the_features_alone(joint):
    heads, taps, labels_MB = heads_and_inputs()
    terms = HeadTerms() if joint else HeadTerms("unlikelihood", (0, 1))
    losses = heads(taps, labels_MB, HeadTerms(joint=True) if joint else terms)
    rows = losses.joint_TMB if joint else losses.regularizer_RMB
    plain = plain_sum(heads, taps, labels_MB, cross_entropy if joint else unlikelihood)
    torch.testing.assert_close(rows.sum(), plain)
    expected = torch.autograd.grad(plain, taps)
    rows.sum().backward()
    for tap, gradient in zip(taps, expected, strict=True):
        torch.testing.assert_close(tap.grad, gradient)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in heads.parameters())


def test_a_draw_or_tap_more_changes_no_other_layer():
    small = RLPHeads([6], 5, 1, seed=0, hidden=4)
    large = RLPHeads([6, 9], 5, 2, seed=0, hidden=4)
    assert torch.equal(small.layers[0][0].weight, large.layers[0][0].weight)
    assert not torch.equal(large.layers[0][0].weight, large.layers[0][1].weight)
    small.layers[0][0].weight.data.zero_()
    small.reset_parameters()
    assert torch.equal(small.layers[0][0].weight, large.layers[0][0].weight)


def test_fresh_heads_are_at_chance():
    heads = RLPHeads([768], 10, 1, seed=0, hidden=64)
    features = torch.randn(256, 768, generator=torch.Generator().manual_seed(0))
    losses = heads([features], torch.randint(10, (1, 256)), HeadTerms())
    assert losses.bits_TMB.abs().max() < 0.8


def test_dropout_is_for_training_only_and_drops_features():
    heads, taps, labels_MB = heads_and_inputs(hidden=None, dropout=0.5)
    dropped = heads(taps, labels_MB, HeadTerms()).bits_TMB
    assert not torch.equal(dropped, heads(taps, labels_MB, HeadTerms()).bits_TMB)
    heads.eval()
    plain, _, _ = heads_and_inputs(hidden=None)
    assert torch.equal(heads(taps, labels_MB, HeadTerms()).bits_TMB, plain(taps, labels_MB, HeadTerms()).bits_TMB)


def test_labels_of_classes_go_through_a_hidden_layer_too():
    heads, taps, _ = heads_and_inputs(num_blocks=3)
    labels_MB = torch.randint(3, (1, NUM_ROWS)) * NUM_LABELS + torch.randint(NUM_LABELS, (NUM_DRAWS, NUM_ROWS))
    losses = heads(taps, labels_MB, HeadTerms("uniform", (1,)))
    (losses.cross_entropy_TMB.sum() + losses.regularizer_RMB.sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in heads.parameters())
    assert taps[0].grad is None
    assert taps[1].grad.abs().sum() > 0
