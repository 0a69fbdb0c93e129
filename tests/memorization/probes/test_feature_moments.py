"""Moments of features: whitening, and which directions count as rank."""

import torch
from audit_problems import K, gaussian, table

from rlpheads.memorization.probes.feature_moments import collect_moments
from rlpheads.memorization.probes.probe_heads import LeastSquaresProbe


def test_whitened_features_are_white():
    features = gaussian(1000, 6) * torch.tensor([1.0, 2, 3, 4, 5, 1e-3]) + 7
    moments = collect_moments(features, table(1000), K)
    white = (features.double() - moments.mean_D) @ moments.whitener_DR
    torch.testing.assert_close(white.T @ white / 1000, torch.eye(6, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(white.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-6, rtol=0)


def test_rounding_errors_are_not_counted_in_the_rank():
    """The sum of layer-normalised features is rounding: a probe that read it would fit labels to noise."""
    normalised = torch.nn.functional.layer_norm(gaussian(500, 24), (24,))
    assert LeastSquaresProbe()(normalised, table(500), K).rank == 23
    doubled = torch.cat([normalised, normalised * 3], dim=1)
    assert LeastSquaresProbe()(doubled, table(500), K).rank == 23
