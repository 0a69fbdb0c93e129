"""First-learned epochs, forgetting, dataset maps and the noisy-label AUC."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from rlpheads.memorization.measures.sample_dynamics import (
    dataset_map,
    first_learned_epoch,
    forgetting_events,
    learned_for_good_epoch,
    noisy_label_auc,
)

HISTORY_EN = torch.tensor(
    [
        # always, never, late, forgotten twice, last epoch only
        [1, 0, 0, 1, 0],
        [1, 0, 0, 0, 0],
        [1, 0, 1, 1, 0],
        [1, 0, 1, 0, 1],
    ]
)


def test_first_learned_epoch_puts_never_after_the_last():
    assert first_learned_epoch(HISTORY_EN, 1).tolist() == [0, 4, 2, 0, 3]


def test_a_chance_hit_is_not_learning():
    """Three hits in a row are, unless the last epoch cuts them short."""
    assert first_learned_epoch(HISTORY_EN).tolist() == first_learned_epoch(HISTORY_EN, 3).tolist() == [0, 4, 2, 4, 3]


def test_forgetting_counts_hits_followed_by_misses():
    assert forgetting_events(HISTORY_EN).tolist() == [0, 0, 0, 2, 0]


def test_one_epoch_has_nothing_to_forget():
    assert forgetting_events(HISTORY_EN[:1]).tolist() == [0] * 5


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 4))
def test_hits_in_a_row_agree_with_a_plain_loop(history, consecutive):
    found = first_learned_epoch(torch.tensor(history)[:, None], consecutive)
    starts = [e for e in range(len(history)) if all(history[e : e + consecutive])]
    assert found.tolist() == [starts[0] if starts else len(history)]


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=8))
def test_histories_agree_with_a_plain_loop(history):
    hit_EN = torch.tensor(history)
    for sample in range(3):
        track = [epoch[sample] for epoch in history]
        assert first_learned_epoch(hit_EN, 1)[sample] == (track.index(True) if True in track else len(track))
        assert forgetting_events(hit_EN)[sample] == sum(a and not b for a, b in pairwise(track))


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=8))
def test_learned_for_good_agrees_with_a_plain_loop(history):
    hit_EN = torch.tensor(history)
    expected = [next(e for e in range(len(history) + 1) if all(row[n] for row in history[e:])) for n in range(3)]
    assert learned_for_good_epoch(hit_EN).tolist() == expected


def test_dataset_map_of_a_confident_and_of_a_variable_sample():
    loss_EN = -torch.log(torch.tensor([[1.0, 0.9], [1.0, 0.1]], dtype=torch.float64))
    result = dataset_map(loss_EN, torch.tensor([[True, True], [True, False]]))
    assert result.confidence_N.tolist() == pytest.approx([1.0, 0.5])
    assert result.variability_N.tolist() == pytest.approx([0.0, 0.4])
    assert result.correctness_N.tolist() == [1.0, 0.5]


@pytest.mark.long
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_equals_scikit_learns_with_ties(pairs):
    scores, noisy = zip(*pairs, strict=True)
    if len(set(noisy)) == 1:
        with pytest.raises(ValueError, match="noisy and clean"):
            noisy_label_auc(torch.tensor(scores), torch.tensor(noisy))
        return
    auc = noisy_label_auc(torch.tensor(scores), torch.tensor(noisy))
    assert float(auc) == pytest.approx(roc_auc_score(noisy, scores))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: first_learned_epoch(torch.zeros(0, 3)), r"shape \(E, N\)"),
        (lambda: forgetting_events(torch.zeros(3)), r"shape \(E, N\)"),
        (lambda: dataset_map(torch.zeros(2, 3), torch.zeros(2, 4)), "must agree"),
        (lambda: noisy_label_auc(torch.zeros(2), torch.zeros(3)), "must be"),
        (lambda: noisy_label_auc(torch.tensor([math.nan, 1]), torch.tensor([True, False])), "NaN"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
