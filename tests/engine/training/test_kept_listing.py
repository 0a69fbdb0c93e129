"""A run that goes on knows its images from its own listing: the tree is not scanned again, unless it has changed."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from listed_folders import ListedFolders

from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.schema import Config
from rlpheads.engine.runs import sources
from rlpheads.engine.runs.opened_run import open_images, read_run
from rlpheads.engine.runs.sources import open_sources, write_listings
from rlpheads.engine.training import job

Elsewhere = Callable[[], None]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> ListedFolders:
    """Any tree counts as large and as unchanged for long enough."""
    monkeypatch.setattr(sources, "ScanCache", partial(sources.ScanCache, least_files=1, settled_ns=-(10**12)))
    return ListedFolders(monkeypatch, "ab")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Elsewhere:
    """Goes to a machine where the user's cache is empty."""
    nodes = iter(range(99))
    return lambda: monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"node{next(nodes)}"))


@pytest.fixture(params=[None, 0.25])
def config(request, spoiled: Config) -> Config:
    """A tree of train and val, and one of which the held-out images are taken."""
    if request.param is not None:
        shutil.rmtree(Path(spoiled.data.root) / "val")
    return replace(spoiled, data=replace(spoiled.data, val_fraction=request.param))


@pytest.fixture
def listing(config: Config, listed: ListedFolders, elsewhere: Elsewhere, tmp_path: Path) -> Path:
    """The listings that a run wrote on another machine."""
    elsewhere()
    write_listings(open_sources(config), tmp_path / "listing")
    assert listed.count() == num_folders(config)
    elsewhere()
    return tmp_path / "listing"


def num_folders(config: Config) -> int:
    """Return the number of class folders that a scan lists."""
    return 4 if config.data.val_fraction is None else 2


def same_images(found: sources.Sources, others: sources.Sources) -> bool:
    pairs = ((found.train, others.train), (found.heldout, others.heldout))
    return all(one.manifest == other.manifest for one, other in pairs) and found.contents == others.contents


@pytest.mark.parametrize("cache", ["empty", "none"])
def test_a_true_listing_takes_the_place_of_a_scan(config, listing, listed, cache, monkeypatch):
    if cache == "none":
        monkeypatch.setattr(sources, "cache_folder", lambda: None)
    found = open_sources(config, run_listing=listing)
    assert listed.count() == 0
    assert same_images(found, open_sources(config))
    rescanned = replace(config, data=replace(config.data, rescan=True))
    listed.count()
    assert same_images(found, open_sources(rescanned, run_listing=listing))
    assert listed.count() == num_folders(config), "data.rescan"


@pytest.mark.parametrize("change", ["added", "written over", "moved", "from before", "damaged"])
def test_a_listing_that_tells_nothing_is_followed_by_a_scan(config, listing, listed, change, tmp_path):
    before, root = open_sources(config, run_listing=listing), Path(config.data.root)
    image, _ = root / "train" / "a" / "00.png", before.contents  # read once, before the change
    match change:
        case "added":
            (root / "train" / "a" / "99.png").write_bytes(image.read_bytes())
        case "written over":  # as large, in a tree of which every file is in the sample
            image.write_bytes(image.read_bytes()[:-1] + b"\x00")
        case "moved":  # a copy's files were never looked at
            shutil.copytree(root, tmp_path / "copy")
            config = replace(config, data=replace(config.data, root=str(tmp_path / "copy")))
        case "from before":
            for facts in listing.glob("*.json"):
                facts.unlink()
        case "damaged":
            for columns in listing.glob("*.npz"):
                columns.write_bytes(columns.read_bytes()[:-99])
    listed.count()
    after = open_sources(config, run_listing=listing)
    # What is added to train or written over there changes no val folder.
    assert listed.count() == (2 if change in ("added", "written over") else num_folders(config))
    assert same_images(after, before) == (change not in ("added", "written over"))


@pytest.mark.long
def test_a_requeued_run_scans_nothing_on_another_node(spoiled, listed, elsewhere):
    run, folder = replace(spoiled, max_steps=1), Path(spoiled.run.dir) / spoiled.run.name
    elsewhere()
    assert job.run(run) == 0
    assert listed.count() == 4
    for facts in (folder / "listing").glob("*.json"):
        facts.unlink()  # as a version left it that kept none
    before = {file.name: file.read_bytes() for file in (folder / "listing").iterdir()}
    elsewhere()
    assert job.run(replace(run, max_steps=2)) == 0
    assert listed.count() == 4
    assert {name: (folder / "listing" / name).read_bytes() for name in before} == before
    elsewhere()
    open_images(read_run(folder))
    assert listed.count() == 0, "an audit"
    assert job.run(replace(run, max_steps=None)) == 0
    assert listed.count() == 0
    assert (folder / "ledger" / "epoch=0001" / "clean.parquet").exists()
    (Path(run.data.root) / "train" / "a" / "99.png").write_bytes(b"another")
    with pytest.raises(ConfigError, match="the train images are not those of the checkpoint: their fingerprint is"):
        job.run(replace(run, max_steps=3, data=replace(run.data, on_error="raise")))
    assert listed.count() == 2, "the val folder has not changed"
