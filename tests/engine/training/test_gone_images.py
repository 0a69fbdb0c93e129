"""Images that vanish while a run pauses: it goes on without them, and every other keeps its index and labels."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.learning import ScheduleConfig
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training import job
from rlpheads.memorization.records.ledger_file import SKIPPED, read_ledger


def vanish(config, *names):
    for name in names:
        (Path(config.data.root) / name).unlink()


@pytest.mark.long
@pytest.mark.wrong("tree")
@pytest.mark.parametrize("val_fraction", [None, 0.25])
def test_a_run_goes_on_without_images_that_are_gone_since(spoiled, capfd, val_fraction):
    """With the same indices and labels, the held-out images too where they are taken from the same folder."""
    root = Path(spoiled.data.root)
    if val_fraction is not None:
        shutil.rmtree(root / "val")
    data = replace(spoiled.data, val_fraction=val_fraction)
    config = replace(spoiled, data=data, max_steps=1)
    assert job.run(config) == 0
    before = open_sources(config).train.manifest
    vanish(config, "train/b/07.png", "train/a/11.png")
    (root / "train" / "a" / "99.png").write_bytes((root / "train" / "a" / "00.png").read_bytes())
    (root / "train" / "b" / "08.png").write_bytes(b"another size")
    on = replace(config, max_steps=None)
    with pytest.raises(ConfigError, match="are gone, --data.on_error skip goes on without them"):
        job.run(replace(on, data=replace(data, on_error="raise")))
    assert job.run(on) == 0
    told = capfd.readouterr()
    assert "3 of 24 images are gone or changed since the run began and are left out; 1 that were added" in told.out
    table = read_ledger(Path(config.run.dir) / config.run.name / "ledger" / "epoch=0001" / "clean.parquet")
    assert len(table.status) == before.num_samples
    skipped = {before.name(index) for index in np.flatnonzero(table.status == SKIPPED).tolist()}
    known = {before.name(index) for index in range(before.num_samples)}
    assert skipped == known & {"a/03.png", "b/07.png", "a/11.png", "b/08.png"}
    assert table.metadata.fingerprint == before.fingerprint
    few = replace(on, epochs=3, data=replace(data, max_skipped=3), schedule=ScheduleConfig(name="constant"))
    few = replace(few, run=replace(few.run, name="another"))
    vanish(config, "train/a/05.png")
    assert job.run(few) == 0, "a run that begins has no images that are gone"
