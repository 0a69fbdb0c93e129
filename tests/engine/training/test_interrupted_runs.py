"""A power failure at every file operation of a run's saves: it ends as an undisturbed one."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from real_runs import table_bytes, without_times
from recorded_files import Tree, recorded, write_tree

from rlpheads.engine.config.run import CheckpointConfig, LedgerConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.training import job


def result(folder: Path):
    """Hashes of the weights, lines of metrics.jsonl but for times, and ledgers."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ledgers = {
        str(path.relative_to(folder)): table_bytes(pq.read_table(path)) for path in sorted(folder.glob("ledger/*/*"))
    }
    return json.loads((folder / "status.json").read_text())["weights_sha256"], without_times(rows), ledgers


def is_saving(state: Tree) -> bool:
    return any("/.step=" in name for name, _ in state)


@pytest.mark.slow
def test_a_run_ends_as_undisturbed_after_every_prefix_of_its_saves(tiny: Config, tmp_path):
    """Of all of its file operations those during saves, and every tenth of the others."""
    config = replace(
        tiny,
        log_every=3,
        data=replace(tiny.data, val_fraction=0.9),
        checkpoint=CheckpointConfig(every_steps=4, keep=1, keep_epochs=0),
        ledger=LedgerConfig(every=1),
        log=replace(tiny.log, tensorboard=False),
    )
    path = Path(config.run.dir) / config.run.name
    path.mkdir()
    with recorded(path) as folder:
        assert job.run(config) == 0
    undisturbed = result(path)
    chosen = [state for number, state in enumerate(folder.states) if is_saving(state) or number % 10 == 0]
    assert len(chosen) > 50
    for state in chosen:
        write_tree(state, path)
        assert job.run(config) == 0
        assert result(path) == undisturbed
