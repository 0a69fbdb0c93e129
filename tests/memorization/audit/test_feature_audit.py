"""Probes that are refitted to features whose memory of the labels is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpheads.memorization.audit.audit_labels import draw_audit_labels, keyed_subset
from rlpheads.memorization.audit.excesses import label_excess, membership_excess
from rlpheads.memorization.audit.feature_audit import audit_features, head_control
from rlpheads.memorization.audit.feature_blocks import GaussianFeatures, RowSubset, iterate_blocks
from rlpheads.memorization.audit.feature_moments import collect_moments
from rlpheads.memorization.audit.probe_heads import LeastSquaresProbe, LogisticProbe, TwoLayerProbe
from rlpheads.memorization.baselines.head_only import least_squares_rla
from rlpheads.memorization.baselines.logistic_baseline import logistic_rla, simulate_logistic
from rlpheads.memorization.heads.labels import label_table
from rlpheads.memorization.measures.intervals import draw_interval
from rlpheads.memorization.validation import excess_coverage

K = 10
EVERY_PROBE = [LeastSquaresProbe(), LogisticProbe(), TwoLayerProbe(hidden=8, max_passes=60)]
AFFINE_PROBES = EVERY_PROBE[:2]


def gaussian(num_samples: int, num_features: int, seed: int = 0) -> torch.Tensor:
    return torch.cat(list(GaussianFeatures(num_samples, num_features, seed)))


def table(num_samples: int, num_draws: int = 1, seed: int = 0, num_labels: int = K) -> torch.Tensor:
    return label_table(num_samples, num_labels, num_draws=num_draws, seed=seed, split="train")


def labels_for(num_samples: int, num_heldout: int, num_own: int = 1, num_draws: int = 8):
    return draw_audit_labels(table(num_samples, num_own), num_heldout, K, num_draws=num_draws, seed=1)


# Probes


@pytest.mark.parametrize(("num_labels", "alpha"), [(2, 2), (2, 10), (10, 4), (10, 10)])
def test_least_squares_reaches_its_closed_form(num_labels, alpha):
    labels = table(4000, 4, num_labels=num_labels)
    fit = LeastSquaresProbe()(GaussianFeatures(4000, 4000 // alpha), labels, num_labels)
    assert float(fit.accuracy_M.mean()) == pytest.approx(least_squares_rla(num_labels, alpha), abs=0.02)
    assert LeastSquaresProbe().control(labels, 4000 // alpha, num_labels) == least_squares_rla(num_labels, alpha)


@pytest.mark.parametrize("alpha", [2.5, 5, 10])
def test_logistic_reaches_the_two_label_limit(alpha):
    fit = LogisticProbe()(GaussianFeatures(2000, int(2000 / alpha)), table(2000, 4, num_labels=2), 2)
    assert float(fit.accuracy_M.mean()) == pytest.approx(logistic_rla(2, alpha).accuracy, abs=0.02)


def test_logistic_of_many_labels_agrees_with_another_solver():
    """sd of one accuracy at this n is about .01; the other solver has its own features and labels."""
    fit = LogisticProbe()(GaussianFeatures(1500, 100), table(1500, 4), K)
    others = [simulate_logistic(K, 1500, 100, seed).accuracy for seed in range(4)]
    assert float(fit.accuracy_M.mean()) == pytest.approx(np.mean(others), abs=0.025)


@pytest.mark.parametrize("probe", [*AFFINE_PROBES, TwoLayerProbe(hidden=32)], ids=lambda probe: probe.name)
def test_below_capacity_every_label_is_fitted(probe):
    features = gaussian(80, 79)
    assert probe(features, table(80, 3), K).accuracy_M.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("probe", EVERY_PROBE, ids=lambda probe: probe.name)
def test_blocks_of_any_size_give_what_the_whole_gives(probe):
    features, labels = gaussian(300, 12), table(300, 2)
    whole = probe(features, labels, K)
    streamed = probe(list(features.split(37)), labels, K)
    assert streamed.rank == whole.rank == 12
    assert streamed.accuracy_M.tolist() == pytest.approx(whole.accuracy_M.tolist(), abs=0.011)


def test_least_squares_is_the_same_for_one_draw_as_for_many():
    features, labels = gaussian(500, 20), table(500, 3)
    together = LeastSquaresProbe()(features, labels, K).accuracy_M
    alone = [float(LeastSquaresProbe()(features, labels[draw : draw + 1], K).accuracy_M) for draw in range(3)]
    assert together.tolist() == alone


@pytest.mark.parametrize("probe", AFFINE_PROBES, ids=lambda probe: probe.name)
def test_shifted_and_mixed_features_fit_no_more_and_no_less(probe):
    features, labels = gaussian(400, 15).double(), table(400, 2)
    mixing = torch.linalg.qr(gaussian(15, 15, seed=1).double())[0] * torch.logspace(-2, 2, 15, dtype=torch.float64)
    moved = probe(features @ mixing + 30, labels, K)
    assert moved.accuracy_M.tolist() == pytest.approx(probe(features, labels, K).accuracy_M.tolist(), abs=0.0051)


def test_rounding_is_no_direction():
    """The sum of layer-normalised features is rounding: a probe that read it would fit labels to noise."""
    normalised = torch.nn.functional.layer_norm(gaussian(500, 24), (24,))
    assert LeastSquaresProbe()(normalised, table(500), K).rank == 23
    doubled = torch.cat([normalised, normalised * 3], dim=1)
    assert LeastSquaresProbe()(doubled, table(500), K).rank == 23


def test_constant_features_leave_the_most_frequent_label():
    labels = table(200)
    fit = LeastSquaresProbe()(torch.ones(200, 5), labels, K)
    assert fit.rank == 0
    assert float(fit.accuracy_M) == torch.bincount(labels[0]).max() / 200


def test_two_layers_fit_what_one_cannot():
    """The label is an exclusive or of two signs."""
    features = gaussian(400, 2)
    labels = (features[:, 0] * features[:, 1] > 0).int()[None]
    assert float(LogisticProbe()(features, labels, 2).accuracy_M) < 0.65
    assert float(TwoLayerProbe(hidden=8)(features, labels, 2).accuracy_M) > 0.95


def test_a_wider_hidden_layer_fits_more():
    features, labels = gaussian(600, 10), table(600, 2)
    narrow, wide = (float(TwoLayerProbe(hidden=h)(features, labels, K).accuracy_M.mean()) for h in (2, 32))
    assert wide > narrow + 0.1


def test_whitened_features_are_white():
    features = gaussian(1000, 6) * torch.tensor([1.0, 2, 3, 4, 5, 1e-3]) + 7
    moments = collect_moments(features, table(1000), K)
    white = (features.double() - moments.mean_D) @ moments.whitener_DR
    torch.testing.assert_close(white.T @ white / 1000, torch.eye(6, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(white.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-6, rtol=0)


# Feature blocks


def test_a_subset_reads_its_rows_across_blocks():
    features = gaussian(50, 3)
    rows = torch.tensor([0, 6, 7, 20, 49])
    assert torch.equal(torch.cat(list(RowSubset(list(features.split(7)), rows))), features[rows])


def test_gaussian_features_are_the_same_each_time():
    first, again = (torch.cat(list(GaussianFeatures(9000, 2, seed=3))) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (9000, 2)
    assert not torch.equal(first[:10], torch.cat(list(GaussianFeatures(9000, 2, seed=4)))[:10])


def test_an_iterator_is_refused():
    with pytest.raises(ValueError, match="more than once"):
        list(iterate_blocks(iter([gaussian(5, 2)])))


@pytest.mark.parametrize(("num_rows", "said"), [(99, "99 rows of features for 100"), (101, "more than 100")])
def test_rows_and_labels_must_match(num_rows, said):
    with pytest.raises(ValueError, match=said):
        LeastSquaresProbe()(gaussian(num_rows, 2), table(100), K)


def test_blocks_must_be_equally_wide_float_matrices():
    with pytest.raises(ValueError, match="3 wide"):
        LeastSquaresProbe()([gaussian(5, 2), gaussian(5, 3)], table(10), K)
    with pytest.raises(ValueError, match="float"):
        LeastSquaresProbe()(torch.ones(10, 2, dtype=torch.int64), table(10), K)
    with pytest.raises(ValueError, match="no rows"):
        LeastSquaresProbe()([], table(10)[:, :0], K)


# Excesses


@pytest.mark.parametrize("probe", EVERY_PROBE, ids=lambda probe: probe.name)
def test_features_that_know_nothing_show_no_excess(probe):
    found = audit_features(gaussian(600, 20), gaussian(300, 20, seed=5), labels_for(600, 300), probe, level=0.999)
    for excess in (found.label_excess, found.membership_excess):
        assert not excess.is_positive
        assert not excess.is_negative
        assert abs(excess.value) < 0.08


@pytest.mark.parametrize("probe", EVERY_PROBE, ids=lambda probe: probe.name)
@pytest.mark.parametrize("num_own", [1, 3])
def test_planted_labels_are_found(probe, num_own):
    labels = labels_for(600, 300, num_own)
    planted = torch.nn.functional.one_hot(labels.own_MN[0].long(), K) * 2 + gaussian(600, K, seed=2)
    found = audit_features(
        torch.cat([gaussian(600, 10), planted], dim=1), gaussian(300, 20, seed=5), labels, probe, level=0.95
    )
    assert found.own_M[0] > np.mean(found.fresh_F) + 0.1
    assert found.label_excess.value == pytest.approx(np.mean(found.own_M) - np.mean(found.fresh_F))
    if num_own == 1:
        assert found.label_excess.is_positive


@pytest.mark.parametrize("probe", AFFINE_PROBES, ids=lambda probe: probe.name)
@pytest.mark.parametrize("member_has_more", [True, False])
def test_more_directions_on_one_side_are_membership(probe, member_has_more):
    rich, poor = gaussian(400, 40), gaussian(400, 10, seed=1) @ gaussian(10, 40, seed=2)
    train, heldout = (rich, poor) if member_has_more else (poor, rich)
    found = audit_features(train, heldout, labels_for(400, 400), probe)
    sign = 1 if member_has_more else -1
    assert sign * found.membership_excess.value > 0.1
    assert found.membership_excess.is_positive is member_has_more
    assert (found.member_rank, found.heldout_rank) == ((40, 10) if member_has_more else (10, 40))
    assert not found.label_excess.is_positive or found.label_excess.value < 0.05


def test_two_layers_see_noise_that_an_affine_probe_cannot():
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


def test_fresh_labels_are_not_the_own_ones_and_keep_their_balance():
    labels = draw_audit_labels(table(100), 50, K, num_draws=4, seed=0, balance="balanced")
    assert all(torch.bincount(draw, minlength=K).tolist() == [10] * K for draw in labels.fresh_FN)
    everything = [labels.own_MN[0], *labels.fresh_FN]
    assert all(not torch.equal(a, b) for i, a in enumerate(everything) for b in everything[:i])
    assert not torch.equal(labels.members_FE, labels.non_members_FE)


def test_few_draws_are_refused():
    with pytest.raises(ValueError, match="fresh draws is 3; it must be an integer of at least 4"):
        labels_for(100, 50, num_draws=3)


def test_controls_belong_to_their_numbers_of_rows():
    labels = labels_for(1000, 200)
    control = head_control(labels, 20, LeastSquaresProbe())
    assert control.all_rows == least_squares_rla(K, 50)
    assert control.equal_rows == least_squares_rla(K, 10)
    simulated = head_control(labels, 20, LogisticProbe())
    assert simulated.all_rows == pytest.approx(simulate_logistic(K, 1000, 20, 0).accuracy, abs=0.04)
    assert simulated.equal_rows > simulated.all_rows + 0.05


# Intervals


def test_the_luck_of_one_own_draw_is_that_of_one_more_fresh_draw():
    fresh = torch.tensor([0.30, 0.32, 0.28, 0.31, 0.29])
    excess = label_excess(torch.tensor([0.40]), fresh)
    scatter = 2.7764451 * float(fresh.double().std())
    assert excess.value == pytest.approx(0.10, abs=1e-7)
    assert excess.luck == pytest.approx(scatter * (1 + 1 / 5) ** 0.5, rel=1e-5)
    assert excess.half_width == pytest.approx(scatter * (1 / 5) ** 0.5, rel=1e-5)
    assert excess.is_positive
    below = label_excess(torch.tensor([0.29]), fresh)
    assert not below.is_negative  # its interval, which is of these labels alone, may leave out 0 all the same


def test_the_luck_of_several_own_draws_is_the_two_sample_t_test():
    from scipy import stats

    own, fresh = torch.tensor([0.33, 0.36, 0.34]), torch.tensor([0.30, 0.32, 0.28, 0.31])
    expected = stats.ttest_ind(own.double(), fresh.double()).confidence_interval(0.9)
    excess = label_excess(own, fresh, 0.9)
    assert excess.luck == pytest.approx((expected.high - expected.low) / 2)


def test_membership_excess_is_the_interval_of_the_differences():
    members, heldout = torch.tensor([0.5, 0.6, 0.55, 0.52]), torch.tensor([0.4, 0.45, 0.5, 0.41])
    excess, expected = membership_excess(members, heldout), draw_interval(members - heldout)
    assert (excess.low, excess.high) == pytest.approx((float(expected.low), float(expected.high)))
    with pytest.raises(ValueError, match="equally many"):
        membership_excess(members, heldout[:3])


@pytest.mark.parametrize("num_own", [1, 3])
def test_label_excess_covers_on_real_fits(num_own):
    """1,000 audits of features that know nothing; the error of the share is .007."""
    num_draws = num_own + 5
    accuracy = LeastSquaresProbe()(gaussian(200, 20), table(200, 1000 * num_draws), K).accuracy_M.view(1000, num_draws)
    excesses = [label_excess(row[:num_own], row[num_own:]) for row in accuracy]
    covered = np.mean([abs(excess.value) <= excess.luck for excess in excesses])
    assert 0.93 <= covered <= 0.97


def test_the_excesses_cover_in_simulated_audits(monkeypatch):
    """400 audits each; 2,000 are in the table of known answers. The error of the share is .011."""
    monkeypatch.setattr(excess_coverage, "NUM_CASES", 400)
    monkeypatch.setattr(excess_coverage, "NUM_FEATURE_SETS", 2)
    covered, excess = excess_coverage.label_excess_coverage(strength=1.0, num_own=1, num_fresh=8)
    assert 0.91 <= covered <= 0.985
    assert excess > 0.4
    covered, excess = excess_coverage.membership_excess_coverage(unevenness=1.0, num_fresh=6)
    assert 0.91 <= covered <= 0.985
    assert abs(excess) > 0.01


def test_the_simulation_of_the_coverage_can_fail():
    """Negative control: the interval of a label excess is none for labels that were never drawn (it is for its own)."""
    simulation = next(excess_coverage.simulate_audits(num_own=1, num_fresh=8, seed=0))
    excesses = [label_excess(draws_F[:1], draws_F[1:]) for draws_F in simulation.fresh_CF]
    covered = np.mean([excess.low <= 0 <= excess.high for excess in excesses])
    assert covered < 0.8


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
