"""Unreadable images in a run: trained around, named once, counted everywhere, and marked in the ledger."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from rlpheads.engine.cli import main
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.report.display import Display
from rlpheads.engine.report.skipped_images import NAMED_AT_MOST, SkipNotices
from rlpheads.engine.runs.resume import ResumePoint
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training.loop import fit
from rlpheads.loaders.contract.errors import DatasetError, ImageReadError
from rlpheads.memorization.records.ledger_file import SKIPPED, read_ledger


@pytest.fixture
def display(launched):
    return Display(Console(file=io.StringIO(), width=300), 2, 3, launched.device)


@pytest.mark.long
def test_a_run_goes_around_them_and_says_so_everywhere(spoiled, build, display, capfd):
    training = build(spoiled)
    outcome = fit(training, display)
    assert outcome.status == "done"
    rows = training.run.folder.metrics("epoch")
    assert [(row["train_skipped"], row["clean_skipped"], row["eval_skipped"]) for row in rows] == [(1, 1, 1)] * 2
    by_step = [row["skipped"] for row in training.run.folder.metrics("step")]
    assert sorted(by_step) == [0, 0, 0, 0, 1 / 8, 1 / 8]
    shown = display._console.file.getvalue()
    assert "skipped: train 1, clean 1, held-out 1" in shown
    assert "skipped 12.50%" in shown
    told = capfd.readouterr().err.splitlines()
    assert len([line for line in told if line.startswith("skipped: image 3 (")]) == 1
    assert len([line for line in told if line.startswith("skipped: image 5 (")]) == 1
    table = read_ledger(training.run.folder.ledger(1, "running"))
    assert np.flatnonzero(table.status == SKIPPED).tolist() == [3]
    assert table.count[3] == 0
    assert np.isnan(table.class_loss[3])
    assert np.flatnonzero(read_ledger(training.run.folder.ledger(1, "heldout")).status == SKIPPED).tolist() == [5]
    assert np.isfinite(rows[-1]["train_loss"])


@pytest.mark.long
def test_a_skipped_row_weighs_nothing_and_the_others_as_before(spoiled, build):
    """The gradient is that of the same batch with the row's loss left out, not of a smaller batch."""
    skipping = build(spoiled)
    batch = next(batch for batch in skipping.splits.trained.loader if batch.skipped)
    dark = replace(batch, skipped=())
    shares = skipping.step(skipping.preparation.for_evaluation(batch), 0, skipping.term_weights)
    assert float(shares["skipped"]) == 1 / 8
    padded = build(spoiled)
    padded.step(padded.preparation.for_evaluation(dark), 0, padded.term_weights)
    for ours, theirs in zip(skipping.learner.tapped.parameters(), padded.learner.tapped.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    status = skipping.splits.trained.ledger.tensors()["status"]
    assert int(status[3]) == SKIPPED
    assert int((status == 1).sum()) == 7


@pytest.mark.long
def test_what_was_skipped_is_part_of_the_checkpoint(spoiled, build):
    training = build(spoiled)
    training.learner.train()
    for number, batch in enumerate(training.splits.trained.loader):
        training.step(training.preparation.for_evaluation(batch), number, training.term_weights)
    training.save()
    training.saver.wait()
    (saved,) = training.run.folder.checkpoints.iterdir()
    again = build(spoiled)
    again.resume(ResumePoint(saved, training.position, 0.0))
    assert again.splits.trained.ledger.num_skipped == training.splits.trained.ledger.num_skipped == 1


def test_without_skipping_the_run_ends_with_the_name(spoiled, build, display):
    training = build(replace(spoiled, data=replace(spoiled.data, on_error="raise")))
    with pytest.raises(ImageReadError, match=r"image 3 \(.*/train/a/03.png\) cannot be read"):
        fit(training, display)


@pytest.mark.long
def test_a_split_without_one_readable_image_ends_the_run(spoiled, build, display):
    for path in Path(spoiled.data.root, "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match=nothing_left(spoiled)):
        fit(build(spoiled), display)


@pytest.mark.long
@pytest.mark.wrong("file")
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_split_that_is_known_to_have_no_readable_image_is_refused_before_anything_begins(spoiled, on_error):
    for path in Path(spoiled.data.root, "val").rglob("*.png"):
        path.write_bytes(b"")
    assert main(["verify", "--data.root", spoiled.data.root, "--workers", "1"]) == 1
    Path(
        spoiled.data.root, ".rlpheads", "train.json"
    ).unlink()  # the one of them alone would stop a run that may not skip
    with pytest.raises(ConfigError, match=nothing_left(spoiled)):
        open_sources(replace(spoiled, data=replace(spoiled.data, on_error=on_error)))


def nothing_left(config):
    where = re.escape(f"none of the 8 images of split 'val' in {config.data.root}/val can be read")
    return where + ".* `rlpheads verify --data.root FOLDER` names each"


def test_each_image_is_named_once_and_not_thousands_of_them(capfd):
    notices = SkipNotices()
    for _ in range(3):
        notices.announce([ImageReadError(index, f"{index}.jpg", "damaged") for index in range(100)])
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == NAMED_AT_MOST + 1
    assert lines[0] == "skipped: image 0 (0.jpg) cannot be read: damaged"
    assert "counted, but not named" in lines[-1]


@pytest.mark.wrong("output")
def test_a_name_never_controls_the_terminal(capfd):
    SkipNotices().announce([ImageReadError(0, "a\x1b[2J\n\a.jpg", "damaged")])
    assert capfd.readouterr().err == "skipped: image 0 (a\\x1b[2J\\n\\x07.jpg) cannot be read: damaged\n"


@pytest.mark.long
def test_an_undamaged_run_shows_nothing_of_it(tiny, build, display):
    fit(build(tiny), display)
    assert "skipped" not in display._console.file.getvalue()


def test_more_unreadable_images_than_the_quota_end_the_run(spoiled, build, display):
    """The one in training is within it; together with the held-out one it is not."""
    with pytest.raises(
        DatasetError, match=r"2 images cannot be read, more than data\.max_skipped: 1; is their disk there"
    ):
        fit(build(replace(spoiled, data=replace(spoiled.data, max_skipped=1))), display)
    with pytest.raises(DatasetError, match=r"1 images cannot be read, more than data\.max_skipped: 0"):
        fit(build(replace(spoiled, data=replace(spoiled.data, max_skipped=0))), display)
