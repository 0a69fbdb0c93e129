"""The audit's memory does not grow with the number of images: peak resident memory of a real process."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys
import torch
from rlpheads.memorization.audit.feature_audit import audit_features
from rlpheads.memorization.audit.audit_labels import draw_audit_labels
from rlpheads.memorization.probes.feature_blocks import GaussianFeatures
from rlpheads.memorization.heads.labels import label_table
from rlpheads.memorization.probes.probe_heads import LeastSquaresProbe

torch.set_num_threads(1)
peaks = []
for num_samples in map(int, sys.argv[1:]):
    own = label_table(num_samples, 50, num_draws=1, seed=0, split="train")
    labels = draw_audit_labels(own, num_samples // 10, 50, num_draws=4, seed=1)
    features = GaussianFeatures(num_samples, 64), GaussianFeatures(num_samples // 10, 64, seed=1)
    found = audit_features(*features, labels, LeastSquaresProbe())
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps({"peaks": peaks, "rank": found.rank}))
"""


@pytest.mark.long
def test_memory_grows_with_the_labels_alone():
    """200,000 rows of 64 features are 51 MB in float32 and 102 MB in float64; their labels, 5 draws, are 4 MB."""
    sizes = ["20000", "200000"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *sizes], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    small, large = found["peaks"]
    assert found["rank"] == 64
    assert large - small < 35, f"peak resident MiB: {small:.0f}, then {large:.0f}"
