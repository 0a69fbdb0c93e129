"""Labels of an audit: fresh, balanced like the run's own, and subsets of equal size."""

import pytest
import torch
from audit_problems import K, labels_for, table
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpheads.memorization.audit.audit_labels import draw_audit_labels, keyed_subset


def test_fresh_labels_are_not_the_own_ones_and_keep_their_balance():
    labels = draw_audit_labels(table(100), 50, K, num_draws=4, seed=0, balance="balanced")
    assert all(torch.bincount(draw, minlength=K).tolist() == [10] * K for draw in labels.fresh_FN)
    everything = [labels.own_MN[0], *labels.fresh_FN]
    assert all(not torch.equal(a, b) for i, a in enumerate(everything) for b in everything[:i])
    assert not torch.equal(labels.members_FE, labels.non_members_FE)


def test_few_draws_are_refused():
    with pytest.raises(ValueError, match="fresh draws is 3; it must be an integer of at least 4"):
        labels_for(100, 50, num_draws=3)


@given(st.integers(1, 300), st.data())
@settings(max_examples=25)
def test_keyed_subsets_are_ascending_rows_without_repeats(num_samples, data):
    size = data.draw(st.integers(1, num_samples))
    rows = keyed_subset(num_samples, size, key=7)
    assert len(rows) == size
    assert torch.equal(rows, rows.unique())
    assert 0 <= int(rows[0]) <= int(rows[-1]) < num_samples
    assert torch.isin(keyed_subset(num_samples, max(1, size - 1), key=7), rows).all()


def test_keyed_subsets_depend_on_the_key_and_cannot_exceed_the_rows():
    assert not torch.equal(keyed_subset(100, 50, 1), keyed_subset(100, 50, 2))
    with pytest.raises(ValueError, match="cannot choose 6 of 5"):
        keyed_subset(5, 6, 0)
