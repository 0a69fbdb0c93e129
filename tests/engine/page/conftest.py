"""A run whose page has everything: ledgers of each epoch, audit heads, planted images."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import small_config

from rlpheads.engine.config.data import CanaryConfig
from rlpheads.engine.config.run import EvalConfig, LedgerConfig
from rlpheads.engine.training import job


@pytest.fixture(scope="session")
def ledgered_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six epochs with a ledger each; audit heads on one draw beside the two of the heads; five mislabelled images."""
    config = small_config(tmp_path_factory.mktemp("runs"), "ledgered", epochs=6)
    config = replace(
        config,
        data=replace(config.data, canaries=CanaryConfig(mislabelled=5)),
        heads=replace(config.heads, audit_draws=1),
        eval=EvalConfig(),
        ledger=LedgerConfig(),
    )
    assert job.run(config) == 0
    return Path(config.run.dir) / config.run.name
