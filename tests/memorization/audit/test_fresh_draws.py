"""How many draws a least-squares audit takes: enough for half a point, few where they are costly."""

import pytest
import torch

from rlpheads.memorization.audit.audit_labels import draw_audit_labels
from rlpheads.memorization.audit.excesses import membership_excess
from rlpheads.memorization.audit.fresh_draws import DEFAULT_DRAWS, HALF_WIDTH, least_squares_draws
from rlpheads.memorization.probes.feature_blocks import GaussianFeatures, RowSubset
from rlpheads.memorization.probes.probe_heads import LeastSquaresProbe


def test_the_draws_give_the_wanted_half_width():
    num_draws = least_squares_draws(1437, 360, 48, 10)
    labels = draw_audit_labels(torch.zeros(1, 1437, dtype=torch.int32), 360, 10, num_draws=num_draws, seed=3)
    members = RowSubset(GaussianFeatures(1437, 48), labels.members_E)
    sides = (members, labels.members_FE), (GaussianFeatures(360, 48, seed=1), labels.non_members_FE)
    accuracies = [LeastSquaresProbe()(features, labels_FE, 10).accuracy_M for features, labels_FE in sides]
    assert 150 < num_draws < 600
    assert 0.5 * HALF_WIDTH < membership_excess(*accuracies).half_width <= HALF_WIDTH


@pytest.mark.parametrize(
    "sizes",
    [(1_280_000, 50_000, 768, 1000), (1437, 360, 10**6, 100), (100, 10, 192, 10)],
    ids=["costly", "large", "every label is fitted"],
)
def test_few_draws_where_many_are_costly_or_say_nothing(sizes):
    assert least_squares_draws(*sizes) == DEFAULT_DRAWS


def test_a_higher_level_takes_more_draws():
    assert least_squares_draws(3000, 3000, 100, 10, level=0.99) > least_squares_draws(3000, 3000, 100, 10)
