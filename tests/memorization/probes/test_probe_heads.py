"""Probes on features whose fit is known: closed forms, another solver, capacity, invariances."""

import numpy as np
import pytest
import torch
from audit_problems import AFFINE_PROBES, EVERY_PROBE, K, gaussian, table

from rlpheads.memorization.baselines.head_only import head_only_rla
from rlpheads.memorization.baselines.logistic_baseline import logistic_rla, simulate_logistic
from rlpheads.memorization.heads.class_blocks import class_block_labels
from rlpheads.memorization.heads.labels import label_table
from rlpheads.memorization.probes.feature_blocks import GaussianFeatures
from rlpheads.memorization.probes.probe_heads import ClassBlockProbe, LeastSquaresProbe, LogisticProbe, TwoLayerProbe


@pytest.mark.long
@pytest.mark.parametrize(("num_labels", "alpha"), [(2, 2), (2, 10), (10, 4), (10, 10)])
def test_least_squares_reaches_its_closed_form(num_labels, alpha):
    labels = table(4000, 4, num_labels=num_labels)
    fit = LeastSquaresProbe()(GaussianFeatures(4000, 4000 // alpha), labels, num_labels)
    expected = head_only_rla(num_labels, 4000, 4000 // alpha)
    assert float(fit.accuracy_M.mean()) == pytest.approx(expected, abs=0.02)
    assert LeastSquaresProbe().control(labels, 4000 // alpha, num_labels) == expected


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.parametrize("probe", EVERY_PROBE, ids=lambda probe: probe.name)
def test_streamed_blocks_give_the_fit_of_the_whole(probe):
    features, labels = gaussian(300, 12), table(300, 2)
    whole = probe(features, labels, K)
    streamed = probe(list(features.split(37)), labels, K)
    assert streamed.rank == whole.rank == 12
    assert streamed.accuracy_M.tolist() == pytest.approx(whole.accuracy_M.tolist(), abs=0.011)


@pytest.mark.parametrize("probe", [LeastSquaresProbe(), ClassBlockProbe(LeastSquaresProbe())], ids=["plain", "blocks"])
def test_hits_are_told_for_each_row(probe):
    """Rows far out determine their own prediction: they are hit in almost every draw, whatever block they come in."""
    labels = table(400, 50)
    features = gaussian(400, 8)
    features[:4] = 1e4 * torch.eye(8)[:4]
    if isinstance(probe, ClassBlockProbe):
        labels = class_block_labels(labels, torch.arange(400) % 2, K)
    fit = probe(list(features.split(37)), labels, K)
    assert float(fit.hit_rate_N.mean()) == pytest.approx(float(fit.accuracy_M.mean()))
    assert (fit.hit_rate_N[:4] > 0.9).all()
    assert fit.hit_rate_N[4:].max() < 0.8


def test_least_squares_is_the_same_for_one_draw_as_for_many():
    features, labels = gaussian(500, 20), table(500, 3)
    together = LeastSquaresProbe()(features, labels, K).accuracy_M
    alone = [float(LeastSquaresProbe()(features, labels[draw : draw + 1], K).accuracy_M) for draw in range(3)]
    assert together.tolist() == alone


@pytest.mark.long
@pytest.mark.parametrize("probe", AFFINE_PROBES, ids=lambda probe: probe.name)
def test_shifted_and_mixed_features_fit_no_more_and_no_less(probe):
    features, labels = gaussian(400, 15).double(), table(400, 2)
    mixing = torch.linalg.qr(gaussian(15, 15, seed=1).double())[0] * torch.logspace(-2, 2, 15, dtype=torch.float64)
    moved = probe(features @ mixing + 30, labels, K)
    assert moved.accuracy_M.tolist() == pytest.approx(probe(features, labels, K).accuracy_M.tolist(), abs=0.0051)


def test_constant_features_leave_the_most_frequent_label():
    labels = table(200)
    fit = LeastSquaresProbe()(torch.ones(200, 5), labels, K)
    assert fit.rank == 0
    assert float(fit.accuracy_M) == torch.bincount(labels[0]).max() / 200


def test_two_layers_fit_exclusive_or():
    """The label is an exclusive or of two signs."""
    features = gaussian(400, 2)
    labels = (features[:, 0] * features[:, 1] > 0).int()[None]
    assert float(LogisticProbe()(features, labels, 2).accuracy_M) < 0.65
    assert float(TwoLayerProbe(hidden=8)(features, labels, 2).accuracy_M) > 0.95


@pytest.mark.long
def test_a_wider_hidden_layer_fits_more():
    features, labels = gaussian(600, 10), table(600, 2)
    narrow, wide = (float(TwoLayerProbe(hidden=h)(features, labels, K).accuracy_M.mean()) for h in (2, 32))
    assert wide > narrow + 0.1


def test_a_probe_of_blocks_is_one_probe_for_each_class():
    generator = torch.Generator().manual_seed(0)
    features_ND = torch.randn(300, 12, generator=generator)
    class_N = torch.arange(300) % 3
    table_MN = label_table(300, K, num_draws=2, seed=0, split="train")
    fit = ClassBlockProbe(LeastSquaresProbe())(features_ND, class_block_labels(table_MN, class_N, K), K)
    each = [LeastSquaresProbe()(features_ND[class_N == c], table_MN[:, class_N == c], K) for c in range(3)]
    torch.testing.assert_close(fit.accuracy_M, torch.stack([one.accuracy_M for one in each]).mean(0))
    assert fit.rank == 12
    control = ClassBlockProbe(LeastSquaresProbe()).control(class_block_labels(table_MN, class_N, K), 12, K)
    assert control == pytest.approx(LeastSquaresProbe().control(table_MN[:, :100], 12, K))
