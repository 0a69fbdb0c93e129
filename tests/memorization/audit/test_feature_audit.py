"""Audits of features whose memory of the labels is known."""

import numpy as np
import pytest
import torch
from audit_problems import AFFINE_PROBES, EVERY_PROBE, K, gaussian, labels_for

from rlpheads.memorization.audit.feature_audit import audit_features, head_control
from rlpheads.memorization.baselines.head_only import head_only_rla
from rlpheads.memorization.baselines.logistic_baseline import simulate_logistic
from rlpheads.memorization.probes.probe_heads import LeastSquaresProbe, LogisticProbe, TwoLayerProbe


@pytest.mark.long
@pytest.mark.parametrize("probe", EVERY_PROBE, ids=lambda probe: probe.name)
def test_features_independent_of_the_labels_show_no_excess(probe):
    found = audit_features(gaussian(600, 20), gaussian(300, 20, seed=5), labels_for(600, 300), probe, level=0.999)
    for excess in (found.label_excess, found.membership_excess):
        assert not excess.is_positive
        assert not excess.is_negative
        assert abs(excess.value) < 0.08


@pytest.mark.long
@pytest.mark.parametrize("probe", EVERY_PROBE, ids=lambda probe: probe.name)
@pytest.mark.parametrize("num_own", [1, 3])
def test_labels_encoded_in_the_features_are_found(probe, num_own):
    labels = labels_for(600, 300, num_own)
    encoded = torch.nn.functional.one_hot(labels.own_MN[0].long(), K) * 2 + gaussian(600, K, seed=2)
    found = audit_features(
        torch.cat([gaussian(600, 10), encoded], dim=1), gaussian(300, 20, seed=5), labels, probe, level=0.95
    )
    assert found.own_M[0] > np.mean(found.fresh_F) + 0.1
    assert found.label_excess.value == pytest.approx(np.mean(found.own_M) - np.mean(found.fresh_F))
    if num_own == 1:
        assert found.label_excess.is_positive


@pytest.mark.long
@pytest.mark.parametrize("probe", AFFINE_PROBES, ids=lambda probe: probe.name)
@pytest.mark.parametrize("member_has_more", [True, False])
def test_higher_rank_on_one_side_is_a_membership_excess(probe, member_has_more):
    rich, poor = gaussian(400, 40), gaussian(400, 10, seed=1) @ gaussian(10, 40, seed=2)
    train, heldout = (rich, poor) if member_has_more else (poor, rich)
    found = audit_features(train, heldout, labels_for(400, 400), probe)
    sign = 1 if member_has_more else -1
    assert sign * found.membership_excess.value > 0.1
    assert found.membership_excess.is_positive is member_has_more
    assert (found.member_rank, found.heldout_rank) == ((40, 10) if member_has_more else (10, 40))
    assert not found.label_excess.is_positive or found.label_excess.value < 0.05


@pytest.mark.long
def test_two_layers_see_scales_that_affine_probes_cannot():
    """Training features with a noisy direction of their own: of full rank on both sides, so linearly the same."""
    base, noise = gaussian(400, 20), gaussian(400, 20, seed=3)
    spectrum = torch.logspace(0, -3, 20)
    train, heldout = base * spectrum + 0.3 * noise, gaussian(400, 20, seed=4) * spectrum
    labels = labels_for(400, 400)
    linear = audit_features(train, heldout, labels, LeastSquaresProbe(), level=0.999).membership_excess
    layered = audit_features(train, heldout, labels, TwoLayerProbe(hidden=8, max_passes=60)).membership_excess
    assert linear.low < 0 < linear.high
    assert layered.is_positive


def test_equal_numbers_on_both_sides_whichever_is_larger():
    for num_train, num_heldout in ((300, 120), (120, 300)):
        labels = labels_for(num_train, num_heldout)
        assert len(labels.members_E) == len(labels.heldout_E) == labels.members_FE.shape[1] == 120
        assert labels.non_members_FE.shape == (8, 120)
        found = audit_features(gaussian(num_train, 30), gaussian(num_heldout, 30, seed=1), labels, LeastSquaresProbe())
        assert found.member_rank == found.heldout_rank == 30
        assert abs(found.membership_excess.value) < 0.1


@pytest.mark.long
def test_controls_belong_to_their_numbers_of_rows():
    labels = labels_for(1000, 200)
    control = head_control(labels, 20, LeastSquaresProbe())
    assert control.all_rows == head_only_rla(K, 1000, 20)
    assert control.equal_rows == head_only_rla(K, 200, 20)
    simulated = head_control(labels, 20, LogisticProbe())
    assert simulated.all_rows == pytest.approx(simulate_logistic(K, 1000, 20, 0).accuracy, abs=0.04)
    assert simulated.equal_rows > simulated.all_rows + 0.05
