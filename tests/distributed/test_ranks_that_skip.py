"""Unreadable images that are left out, on two ranks: each is another rank's, and both together are the run on one."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

pytestmark = pytest.mark.distributed

SKIPPED = 2
"""The status in the ledger."""
BAD = {"train": {3, 17, 18}, "val": {5}}
"""Canonical indices of the files that are no images; of one split none, one or two may come to a rank in a batch."""


@pytest.fixture
def flags(tmp_path) -> list[str]:
    random = np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 11)):
        for index in range(2 * count):
            path = tmp_path / "tree" / split / "ab"[index // count] / f"{index % count:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if index in BAD[split]:
                path.write_bytes(b"damaged")
            else:
                Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    data = {"dataset": "imagefolder", "root": str(tmp_path / "tree"), "val_fraction": "null", "on_error": "skip"}
    training = {"batch_size": "8", "model.args.drop_rate": "0", "optim.lr": "1e-4", "heads.optim.lr": "1e-4"}
    given = {**{f"data.{key}": value for key, value in data.items()}, **training}
    return [part for key, value in given.items() for part in (f"--{key}", value)]


def skipped(ledger: pa.Table) -> set[int]:
    return set(ledger.filter(pc.equal(ledger["status"], SKIPPED))["index"].to_pylist())


def test_two_ranks_leave_out_what_one_leaves_out(runner, flags):
    single, pair = runner.run("skipping", *flags), runner.run("skipping_pair", *flags, ranks=2)
    assert single.code == pair.code == 0, single.output + pair.output
    for ours, theirs in zip(pair.rows("step"), single.rows("step"), strict=True):
        for key in ("class_loss", "head_cross_entropy", "skipped"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    assert sum(row["skipped"] > 0 for row in pair.rows("step")) >= 2
    for ours, theirs in zip(pair.rows("epoch"), single.rows("epoch"), strict=True):
        assert (ours["train_skipped"], ours["clean_skipped"], ours["eval_skipped"]) == (3, 3, 1)
        for key in ("train_loss", "clean_loss", "eval_loss", "eval_top1"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    assert pair.ledgers.keys() == single.ledgers.keys()
    for name, ledger in pair.ledgers.items():
        for column in ("index", "status", "count", "target"):
            assert ledger[column] == single.ledgers[name][column], (name, column)
        assert skipped(ledger) == BAD["val" if "heldout" in name else "train"], name
    for index in (3, 17, 18, 5):
        told = [line for line in pair.output.splitlines() if f"skipped: image {index} (" in line]
        assert 1 <= len(told) <= 2, "a rank names an image once, and either may meet it"
    assert "skipped: train 3, clean 3, held-out 1" in pair.output
