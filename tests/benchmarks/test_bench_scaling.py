"""The benchmark of the rate over ranks: its settings can be run."""

import bench_scaling
import pytest

from rlpheads.engine.checks.settings import settings_errors
from rlpheads.engine.train import read_settings


@pytest.mark.parametrize("device", bench_scaling.SIZES)
@pytest.mark.parametrize("ranks", [1, 2, 16])
def test_its_settings_can_be_run(ranks, device):
    config = read_settings(bench_scaling.settings(ranks, 10, bench_scaling.SIZES[device]), print)
    assert list(settings_errors(config, ranks)) == []
