"""What is settled before the ranks meet, and what the user is told of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from rlpheads.engine.config.schema import Config
from rlpheads.engine.model.plan import plan_model
from rlpheads.engine.runs.folder import claim
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training.start import Start, settle_start


def settled(config: Config) -> Start:
    sources = open_sources(config)
    folder, lock = claim(config.run)
    with lock:
        return settle_start(config, plan_model(config, len(sources.train.manifest.classes)), sources, folder)


@pytest.mark.wrong("not ours")
def test_what_no_run_made_stays_and_is_named_in_one_line(tiny: Config):
    settled(tiny)
    folder = Path(tiny.run.dir) / tiny.run.name
    for number in range(10):
        (folder / f"note{number}.txt").write_text("")
    start = settled(replace(tiny, run=replace(tiny.run, overwrite=True)))
    (line,) = [warning for warning in start.warnings if "no run made it" in warning]
    assert line.startswith(f"left in {folder}, since no run made it: note0.txt, note1.txt, ")
    assert line.endswith("note7.txt and 2 more")
    assert (folder / "note9.txt").exists()


@pytest.mark.parametrize("flags", [{"overwrite": True}, {"resume": "never"}], ids=["overwrite", "never"])
def test_job_that_goes_on_with_its_own_run_says_so(tiny: Config, monkeypatch, flags):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this-job")
    config = replace(tiny, run=replace(tiny.run, **flags))
    first, again = settled(config), settled(config)
    assert not any("goes on with what it made" in warning for warning in first.warnings)
    assert any("goes on with what it made itself" in warning for warning in again.warnings)
