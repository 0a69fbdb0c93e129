"""Labels drawn inside each class: numbering, a loss over the class's block alone, and heads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpheads.kernels.random_label_loss import random_label_loss
from rlpheads.memorization.heads.class_blocks import class_block_labels, class_block_loss
from rlpheads.memorization.heads.head_losses import HeadTerms
from rlpheads.memorization.heads.labels import label_table
from rlpheads.memorization.heads.rlp_heads import RLPHeads

C, K, D, B = 3, 4, 6, 17
KINDS = ("unlikelihood", "uniform", "reversal", "entropy")


def problem(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    features_BD = torch.randn(B, D, generator=generator, dtype=torch.float64)
    weight_AD = torch.randn(C * K, D, generator=generator, dtype=torch.float64)
    bias_A = torch.randn(C * K, generator=generator, dtype=torch.float64)
    class_B = torch.randint(C, (B,), generator=generator)
    within_B = torch.randint(K, (B,), generator=generator)
    return features_BD, weight_AD, bias_A, class_B, within_B


@given(st.integers(2, 50), st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_numbers_tell_class_and_label(num_labels, classes):
    classes_N = torch.tensor(classes)
    table_MN = label_table(len(classes), num_labels, num_draws=2, seed=0, split="train")
    numbers_MN = class_block_labels(table_MN, classes_N, num_labels)
    assert torch.equal(numbers_MN // num_labels, classes_N.int().expand(2, -1))
    assert torch.equal(numbers_MN % num_labels, table_MN)


def test_too_many_labels_are_refused():
    with pytest.raises(ValueError, match="int32"):
        class_block_labels(torch.zeros(1, 1, dtype=torch.int32), torch.tensor([999]), 2**30)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_blocks_own_head(kind):
    """Against the plain loss on each class's rows with that class's K rows of the head: values and every gradient."""
    features_BD, weight_AD, bias_A, class_B, within_B = problem()
    leaves = [leaf.requires_grad_() for leaf in (features_BD, weight_AD, bias_A)]
    found = class_block_loss(*leaves, class_B * K + within_B, num_labels=K, regularizer=kind, joint=True)
    upstream_B = torch.linspace(0.5, 2, B, dtype=torch.float64)
    names = ("cross_entropy_B", "regularizer_B", "joint_B")
    gradients = {
        name: torch.autograd.grad(
            (getattr(found, name) * upstream_B).sum(), leaves, allow_unused=True, retain_graph=True
        )
        for name in names
    }
    for number in range(C):
        rows = class_B == number
        block = slice(number * K, (number + 1) * K)
        own = [features_BD[rows].detach(), weight_AD[block].detach(), bias_A[block].detach()]
        own = [leaf.requires_grad_() for leaf in own]
        expected = random_label_loss(own[0], own[1], within_B[rows], bias_K=own[2], regularizer=kind, joint=True)
        for name in (*names, "hit_B", "bits_B", "margin_B"):
            torch.testing.assert_close(getattr(found, name)[rows], getattr(expected, name))
        for name in names:
            loss = (getattr(expected, name) * upstream_B[rows]).sum()
            wanted = torch.autograd.grad(loss, own, allow_unused=True, retain_graph=True)
            for position, (got, want) in enumerate(zip(gradients[name], wanted, strict=True)):
                assert (got is None) == (want is None), (name, position)
                if want is not None:
                    torch.testing.assert_close(got[rows] if position == 0 else got[block], want)


def test_heads_with_blocks_use_only_the_block_of_the_rows_class():
    """Other classes' rows of the head do not matter."""
    heads = RLPHeads([D], K, 2, seed=0, num_blocks=C, dtype=torch.float64)
    features_BD, _, _, class_B, within_B = problem()
    labels_MB = (class_B * K + within_B).expand(2, -1)
    before = heads([features_BD], labels_MB, HeadTerms())
    with torch.no_grad():
        heads.heads[0][0].weight[:K] += 100  # class 0 in draw 0
    after = heads([features_BD], labels_MB, HeadTerms())
    changed_MB = before.cross_entropy_TMB[0] != after.cross_entropy_TMB[0]
    assert torch.equal(changed_MB[0], class_B == 0)
    assert not changed_MB[1].any()
    assert heads.heads[0][0].weight.shape == (C * K, D)
