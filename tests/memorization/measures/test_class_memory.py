"""Memory by class: planted in one class, it is found there and nowhere else."""

import math

import pytest
import torch

from rlpheads.memorization.measures.class_memory import (
    ClassRows,
    RandomLabelHits,
    memory_by_class,
    size_correlation,
)


def planted(num_classes=8, size=200, seed=0):
    """Class 3 is memorised: its training losses are low and its random labels known; the others look like held-out ones."""
    generator = torch.Generator().manual_seed(seed)
    target_N = torch.arange(num_classes).repeat_interleave(size)
    train = ClassRows(target_N, torch.rand(len(target_N), generator=generator) * (1 - 0.9 * (target_N == 3)))
    heldout = ClassRows(target_N, torch.rand(len(target_N), generator=generator))
    chance = torch.full((2, 4, len(target_N)), 0.1)
    hit_TMN = torch.rand(chance.shape, generator=generator) < chance + 0.6 * (target_N == 3)
    return train, heldout, RandomLabelHits(hit_TMN, torch.full((2, len(target_N)), 0.1), 100)


def test_the_memorised_class_stands_out_alone():
    train, heldout, hits = planted()
    found = memory_by_class(train, heldout, 8, hits)
    assert [each.loss_excess.excludes(0) for each in found] == [number == 3 for number in range(8)]
    assert [each.membership_auc.excludes(0.5) for each in found] == [number == 3 for number in range(8)]
    assert [[tap.excludes(0) for tap in each.excess_T] for each in found] == [[number == 3] * 2 for number in range(8)]
    assert found[3].membership_auc.value == pytest.approx(0.95, abs=0.02)  # uniform on [0, 1] above uniform on [0, .1]
    assert found[3].rla_T[0].value == pytest.approx(0.7, abs=0.05)
    assert found[3].excess_T[1].value == pytest.approx(found[3].rla_T[1].value - 0.1)


def test_intervals_hold_over_all_classes_together():
    """Nothing is memorised: 20 classes at two taps, 100 times; a class strays in about 5 % of them, not in 64 %."""
    strays = {"loss": 0, "labels": 0}
    generator = torch.Generator().manual_seed(1)
    target_N = torch.arange(20).repeat_interleave(60)
    for _ in range(100):
        train, heldout = (ClassRows(target_N, torch.rand(len(target_N), generator=generator)) for _ in range(2))
        hits = RandomLabelHits(torch.rand(2, 1, len(target_N), generator=generator) < 0.1)
        found = memory_by_class(train, heldout, 20, hits)
        strays["loss"] += any(each.loss_excess.excludes(0) for each in found)
        strays["labels"] += any(tap.excludes(0.1) for each in found for tap in each.rla_T)
    assert max(strays.values()) <= 5 + 3 * math.sqrt(100 * 0.05 * 0.95)


def test_classes_without_images_are_unknown():
    rows = ClassRows(torch.tensor([0, 0, 2]), torch.tensor([1.0, 2.0, 3.0]))
    found = memory_by_class(
        rows, ClassRows(torch.tensor([0, 1]), torch.ones(2)), 3, RandomLabelHits(torch.ones(1, 1, 3))
    )
    assert [each.num_train for each in found] == [2, 0, 1]
    assert math.isnan(found[1].loss.value)
    assert math.isnan(found[1].rla_T[0].value)
    assert math.isnan(found[2].membership_auc.value)
    assert found[2].loss.value == 3
    assert math.isnan(found[0].excess_T[0].value)  # no refit


def test_tail_classes_with_more_memory_are_seen():
    train, heldout, _ = planted()
    keep_N = torch.rand(len(train.target_N), generator=torch.Generator().manual_seed(2)) < 1 / (1 + train.target_N)
    classes = memory_by_class(ClassRows(train.target_N[keep_N], train.loss_N[keep_N]), heldout, 8)
    sizes = [each.num_train for each in classes]
    assert size_correlation(classes, [-float(size) for size in sizes]).rho == -1
    assert math.isnan(size_correlation(classes, [math.nan] * 8).rho)


@pytest.mark.parametrize(
    ("hits", "message"),
    [
        (RandomLabelHits(torch.ones(2, 1, 5)), "hit_TMN must have shape"),
        (RandomLabelHits(torch.full((2, 1, 3), 0.5)), "hits are 0 or 1"),
        (RandomLabelHits(torch.ones(2, 1, 3), torch.ones(1, 3), 4), "refit_rate_TN must have shape"),
        (RandomLabelHits(torch.ones(2, 1, 3), torch.full((2, 3), 50.0), 4), "neither percent nor logits"),
        (RandomLabelHits(torch.ones(2, 1, 3), torch.ones(2, 3)), "refit_draws is 0"),
    ],
)
def test_hits_that_are_none_are_refused(hits, message):
    rows = ClassRows(torch.tensor([0, 1, 2]), torch.ones(3))
    with pytest.raises(ValueError, match=message):
        memory_by_class(rows, rows, 3, hits)
