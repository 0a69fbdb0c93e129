"""Features and labels that the tests of the audit share."""

import torch

from rlpheads.memorization.audit.audit_labels import AuditLabels, draw_audit_labels
from rlpheads.memorization.heads.labels import label_table
from rlpheads.memorization.probes.feature_blocks import GaussianFeatures
from rlpheads.memorization.probes.probe_heads import LeastSquaresProbe, LogisticProbe, TwoLayerProbe

K = 10
EVERY_PROBE = [LeastSquaresProbe(), LogisticProbe(), TwoLayerProbe(hidden=8, max_passes=60)]
AFFINE_PROBES = EVERY_PROBE[:2]


def gaussian(num_samples: int, num_features: int, seed: int = 0) -> torch.Tensor:
    return torch.cat(list(GaussianFeatures(num_samples, num_features, seed)))


def table(num_samples: int, num_draws: int = 1, seed: int = 0, num_labels: int = K) -> torch.Tensor:
    return label_table(num_samples, num_labels, num_draws=num_draws, seed=seed, split="train")


def labels_for(num_samples: int, num_heldout: int, num_own: int = 1, num_draws: int = 8) -> AuditLabels:
    return draw_audit_labels(table(num_samples, num_own), num_heldout, K, num_draws=num_draws, seed=1)
