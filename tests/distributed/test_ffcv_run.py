"""A run on FFCV: converted, trained on two ranks, and recorded as the same samples that a run on torch records."""

from pathlib import Path

import pytest
from loader_libraries import require_library

from rlpheads.engine.cli import main

pytestmark = pytest.mark.distributed


def test_two_ranks_train_from_a_store(runner, undisturbed, tmp_path):
    require_library("ffcv")
    store = tmp_path / "digits.beton"
    convert = ["convert", "--data.dataset", "digits", "--data.val_fraction", "0.2", "--mode", "raw", "--workers", "0"]
    assert main([*convert, "--out", str(store)]) == 0
    flags = ["--data.root", str(store), "--data.loader", "ffcv", "--data.workers", "1", "--epochs", "1"]
    finished = runner.run("ffcv", *flags, ranks=2)
    assert finished.code == 0, finished.output
    assert finished.status["status"] == "done"
    for name in ("running", "clean", "heldout"):
        ours, theirs = (run.ledgers[f"ledger/epoch=0000/{name}.parquet"] for run in (finished, undisturbed))
        for column in ("index", "status", "count", "target"):
            assert ours[column].equals(theirs[column])
        for key in (b"fingerprint", b"seed", b"K"):
            assert ours.schema.metadata.get(key) == theirs.schema.metadata.get(key)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--data.loader", "ffcv"],
            "the ffcv loader reads stores only.*rlpheads convert --data.dataset digits --data.val_fraction 0.2 ",
        ),
        (["--data.root", "STORE", "--seed", "3"], "was split by .*but the run splits by .*--seed"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(tmp_path, flags, message):
    require_library("ffcv")
    from rlpheads.engine.config.command_line import parse_config
    from rlpheads.engine.config.errors import ConfigError
    from rlpheads.engine.runs.sources import open_sources

    store = str(tmp_path / "store")
    convert = ["convert", "--data.dataset", "digits", "--data.val_fraction", "0.2", "--mode", "raw", "--workers", "0"]
    assert main([*convert, "--out", store]) == 0
    digits = str(Path(__file__).parent.parent.parent / "configs" / "digits_vit.yaml")
    config = parse_config(["--config", digits, *(flag.replace("STORE", store) for flag in flags)])
    with pytest.raises(ConfigError, match=message):
        open_sources(config)
