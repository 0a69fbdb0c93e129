"""Runs that read copies on the node's own disk end as those that read the images where they are."""

import json
import os
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from loader_libraries import require_library

from rlpheads.engine import exit_codes
from rlpheads.engine.config.data import CanaryConfig, SubsetConfig
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed.staging import stage_splits
from rlpheads.engine.distributed.stop_flag import install_stop_flag
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training import job
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.sources import local_copy
from rlpheads.loaders.sources.datasets import open_dataset
from rlpheads.loaders.sources.image_folder import ImageFolderSource
from rlpheads.loaders.sources.local_copy import MARK, SENTINEL
from rlpheads.loaders.store.image_encoding import Encoding
from rlpheads.loaders.store.write_ffcv import Job, write_beton


@pytest.fixture
def scratch(tmp_path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def named(config: Config, name: str, **data) -> Config:
    return replace(config, run=replace(config.run, name=name), data=replace(config.data, **data))


def weights(config: Config) -> str:
    return json.loads((Path(config.run.dir) / config.run.name / "status.json").read_text())["weights_sha256"]


def read_from(monkeypatch) -> Counter:
    """Count the images that are read, by the folder that they are read from."""
    roots, file = Counter(), ImageFolderSource._file

    def counted(self, index):
        roots[self.manifest.root.parent] += 1
        return file(self, index)

    monkeypatch.setattr(ImageFolderSource, "_file", counted)
    return roots


@pytest.mark.long
def test_a_staged_run_reads_the_copies_and_ends_as_any_other(spoiled, scratch, monkeypatch, capfd):
    """With images that cannot be read, a subset and canaries, whose indices are other than the files'."""
    canaries = CanaryConfig(repeated=2, repeats=2, near_duplicates=1)
    spoiled = named(spoiled, "plain", canaries=canaries, subset=SubsetConfig(per_class=9))
    assert job.run(spoiled) == exit_codes.DONE
    staged = named(spoiled, "staged", stage=str(scratch))
    roots = read_from(monkeypatch)
    assert job.run(staged) == exit_codes.DONE
    assert weights(staged) == weights(spoiled)
    (folder,) = scratch.iterdir()
    # To name the folder, the contents of what is copied are hashed.
    assert roots[Path(spoiled.data.root)] == 18 + 8
    assert roots[folder] > 18 + 8
    files = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert len(files) == 18 + 8
    sentinel = json.loads((folder / SENTINEL).read_text())
    assert (sentinel["files"], sentinel["version"]) == (26, 1)
    assert f"data.stage: 26 files in {folder}, 0.00 GB copied in" in capfd.readouterr().out
    assert job.run(named(staged, "again")) == exit_codes.DONE
    assert f"data.stage: 26 files in {folder}, all there already" in capfd.readouterr().out


def test_a_stop_signal_during_the_copy_is_answered_as_one_in_training_is(spoiled, scratch, monkeypatch, capfd):
    copied, copy_file = [], local_copy._copy_file

    def copy_one_and_stop(path, size, part, tally):
        if copied or copied.append(path):
            waited = time.monotonic()
            while not tally.stops and time.monotonic() - waited < 60:
                time.sleep(0.01)
        copy_file(path, size, part, tally)
        signal.raise_signal(signal.SIGTERM) if not tally.stops else None

    config = replace(named(spoiled, "stopped", stage=str(scratch)), max_steps=2)
    status = Path(config.run.dir) / "stopped" / "status.json"
    with monkeypatch.context() as patch:
        patch.setattr(local_copy, "_copy_file", copy_one_and_stop)
        assert job.run(config) == exit_codes.REQUEUE
    found = json.loads(status.read_text())
    assert (found["status"], found["untrained"]) == ("requeue", True)
    assert found["reason"] == "stopped by SIGTERM while images were copied (data.stage), before a step was taken"
    assert "requeue: stopped by SIGTERM while images were copied" in capfd.readouterr().out
    (folder,) = scratch.iterdir()
    assert not (folder / SENTINEL).exists()
    assert job.run(config) == exit_codes.DONE
    assert (folder / SENTINEL).exists()
    assert json.loads(status.read_text())["status"] == "done"


@pytest.mark.long
def test_an_image_that_was_replaced_is_not_read_from_an_older_copy(spoiled, scratch):
    config = replace(named(spoiled, "before", stage=str(scratch)), max_steps=1)
    assert job.run(config) == exit_codes.DONE
    (old,) = scratch.iterdir()
    image = Path(spoiled.data.root) / "train" / "a" / "03.png"
    image.write_bytes(b"DAMAGED")
    assert job.run(named(config, "after")) == exit_codes.DONE
    (new,) = set(scratch.iterdir()) - {old}
    contents = [(folder / "train" / "a" / "03.png").read_bytes() for folder in (old, new)]
    assert contents == [b"damaged", b"DAMAGED"]


@pytest.mark.slow
def test_a_run_goes_on_from_another_place_without_another_fingerprint(spoiled, scratch):
    """Also where the held-out images are taken from the same folder, and whatever the seed of that split."""
    shutil.rmtree(Path(spoiled.data.root) / "val")
    whole = named(spoiled, "whole", val_fraction=0.25)
    assert job.run(whole) == exit_codes.DONE
    cut = named(replace(whole, max_steps=3), "cut", stage=str(scratch))
    assert job.run(cut) in (exit_codes.DONE, exit_codes.REQUEUE)
    assert job.run(named(replace(whole, max_steps=None), "cut")) == exit_codes.DONE
    assert weights(named(whole, "cut")) == weights(whole)
    other_split = replace(named(cut, "other", stage=str(scratch)), seed=5)
    assert job.run(other_split) in (exit_codes.DONE, exit_codes.REQUEUE)
    assert len(list(scratch.iterdir())) == 1, "the files are the same"


@pytest.mark.long
@pytest.mark.wrong("folder")
def test_a_folder_of_somebody_elses_ends_the_run_with_one_line(spoiled, scratch, capfd):
    staged = named(spoiled, "first", stage=str(scratch))
    assert job.run(replace(staged, max_steps=1)) == exit_codes.DONE
    (folder,) = scratch.iterdir()
    (folder / MARK).unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capfd.readouterr()
    assert job.run(named(staged, "second")) == exit_codes.FAILED
    assert f"data.stage: {folder} holds files, and no mark" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    status = json.loads((Path(staged.run.dir) / "second" / "status.json").read_text())
    assert status["status"] == "failed"
    assert str(folder) in status["reason"]


@pytest.mark.long
def test_a_store_is_staged(spoiled, scratch, tmp_path):
    require_library("ffcv")
    store = tmp_path / "images.beton"
    store.mkdir()
    for split in open_dataset("imagefolder", spoiled.data.root, seed=0):
        path = store / f"{split.manifest.split}.beton"
        write_beton(Job(split, path, "imagefolder", None, Encoding("raw"), on_error="skip"))
    in_place = named(spoiled, "in_place", root=str(store))
    staged = named(in_place, "staged", stage=str(scratch))
    assert job.run(in_place) == job.run(staged) == exit_codes.DONE
    assert weights(staged) == weights(in_place)
    (folder,) = scratch.iterdir()
    for path in store.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    os.utime(store / "train.beton")  # converted anew, perhaps otherwise
    assert job.run(named(staged, "anew")) == exit_codes.DONE
    assert len(list(scratch.iterdir())) == 2


@pytest.mark.wrong("config")
def test_copies_inside_the_tree_are_refused(spoiled):
    """They would be scanned as a class the next time."""
    with pytest.raises(ConfigError, match=r"data\.stage: got .*train'; allowed: a folder outside data\.root"):
        job.run(named(spoiled, "inside", stage=f"{spoiled.data.root}/../images/train"))


@pytest.mark.wrong("folder")
def test_the_error_of_a_node_is_every_ranks(tmp_path, spoiled, launched):
    data, sources = replace(spoiled.data, stage=str(tmp_path / "nowhere")), open_sources(spoiled)
    with pytest.raises(DatasetError, match=r"data\.stage: there is no folder .*nowhere on this node"):
        stage_splits(data, (sources.train, sources.heldout), launched, print, install_stop_flag(launched))
    assert "there is no folder" in launched.store.get("staging failed").decode()
