"""Unreadable images in a run: trained around, named once, counted everywhere, and marked in the ledger."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from rlpheads.engine import job
from rlpheads.engine.audit_run import AuditOptions, audit_run
from rlpheads.engine.display import Display
from rlpheads.engine.loop import fit
from rlpheads.engine.resume import ResumePoint
from rlpheads.engine.run_loading import open_run
from rlpheads.engine.skipping import NAMED_AT_MOST, SkipNotices
from rlpheads.loaders.decode import ImageReadError
from rlpheads.memorization.ledger import SKIPPED, read_ledger


@pytest.fixture
def spoiled(tiny, tmp_path):
    """24 training and 8 held-out images, of which train/a/03 and val/b/01 are no images: indices 3 and 5."""
    root = tmp_path / "images"
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number:02d}.png")
    (root / "train" / "a" / "03.png").write_bytes(b"damaged")
    (root / "val" / "b" / "01.png").write_bytes(b"")
    data = replace(tiny.data, dataset="imagefolder", root=str(root), on_error="skip")
    return replace(tiny, data=data, batch_size=8, log_every=1)


@pytest.fixture
def display(launched):
    return Display(Console(file=io.StringIO(), width=300), 2, 3, launched.device)


def test_a_run_goes_around_them_and_says_so_everywhere(spoiled, build, display, capfd):
    training = build(spoiled)
    outcome = fit(training, display)
    assert outcome.status == "done"
    rows = training.folder.metrics("epoch")
    assert [(row["train_skipped"], row["clean_skipped"], row["eval_skipped"]) for row in rows] == [(1, 1, 1)] * 2
    by_step = [row["skipped"] for row in training.folder.metrics("step")]
    assert sorted(by_step) == [0, 0, 0, 0, 1 / 8, 1 / 8]
    shown = display._console.file.getvalue()
    assert "unreadable and skipped: train 1, clean 1, held-out 1" in shown
    assert "skipped 12.50%" in shown
    told = capfd.readouterr().err.splitlines()
    assert len([line for line in told if line.startswith("skipped: image 3 (")]) == 1
    assert len([line for line in told if line.startswith("skipped: image 5 (")]) == 1
    table = read_ledger(training.folder.ledger(1, "running"))
    assert np.flatnonzero(table.status == SKIPPED).tolist() == [3]
    assert table.count[3] == 0
    assert np.isnan(table.class_loss[3])
    assert np.flatnonzero(read_ledger(training.folder.ledger(1, "heldout")).status == SKIPPED).tolist() == [5]
    assert np.isfinite(rows[-1]["train_loss"])


def test_a_skipped_row_weighs_nothing_and_the_others_as_before(spoiled, build):
    """The gradient is that of the same batch with the row's loss left out, not of a smaller batch."""
    skipping = build(spoiled)
    batch = next(batch for batch in skipping.loader if batch.skipped)
    dark = replace(batch, skipped=())
    shares = skipping.step(*skipping.prepare(batch), 0)
    assert float(shares["skipped"]) == 1 / 8
    padded = build(spoiled)
    padded.step(*padded.prepare(dark), 0)
    for ours, theirs in zip(skipping.learner.tapped.parameters(), padded.learner.tapped.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    status = skipping.running.tensors()["status"]
    assert int(status[3]) == SKIPPED
    assert int((status == 1).sum()) == 7


def test_what_was_skipped_is_part_of_the_checkpoint(spoiled, build):
    training = build(spoiled)
    training.learner.train()
    for number, batch in enumerate(training.loader):
        training.step(*training.prepare(batch), number)
    training.save()
    (saved,) = training.folder.checkpoints.iterdir()
    again = build(spoiled)
    again.resume(ResumePoint(saved, training.position, 0.0))
    assert again.running.num_skipped == training.running.num_skipped == 1


def test_an_audit_leaves_them_out(spoiled, tmp_path):
    """All is as if they were not there: features, the run's own labels and fresh ones all belong to the other images."""
    assert job.run(replace(spoiled, run=replace(spoiled.run, dir=str(tmp_path), name="spoiled"))) == 0
    found = audit_run(open_run(tmp_path / "spoiled"), AuditOptions(device="cpu"))
    assert (found.num_train, found.num_equal, found.num_skipped) == (23, 7, 2)
    assert all(0 <= tap.found.own_M[0] * 23 <= 23 and (tap.found.own_M[0] * 23) % 1 < 1e-6 for tap in found.taps)


def test_without_skipping_the_run_ends_with_the_name(spoiled, build, display):
    training = build(replace(spoiled, data=replace(spoiled.data, on_error="raise")))
    with pytest.raises(ImageReadError, match=r"image 3 \(.*/train/a/03.png\) cannot be read"):
        fit(training, display)


def test_each_image_is_named_once_and_not_thousands_of_them(capfd):
    notices = SkipNotices()
    for _ in range(3):
        notices.tell([ImageReadError(index, f"{index}.jpg", "damaged") for index in range(100)])
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == NAMED_AT_MOST + 1
    assert lines[0] == "skipped: image 0 (0.jpg) cannot be read: damaged"
    assert "counted, but not named" in lines[-1]


def test_an_undamaged_run_shows_nothing_of_it(tiny, build, display):
    fit(build(tiny), display)
    assert "skipped" not in display._console.file.getvalue()
