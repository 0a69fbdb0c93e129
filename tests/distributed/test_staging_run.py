"""Two ranks of a node: one copies the images, the other waits; killed in the middle, the same command goes on."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image
from real_runs import same_result
from slow_copies import copy_slowly

from rlpheads.loaders.sources.local_copy import SENTINEL

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

FEW = ["--data.dataset", "imagefolder", "--data.val_fraction", "null", "--batch_size", "16", "--heads.labels", "5"]


@pytest.fixture
def tree(tmp_path):
    """64 training and 16 held-out images of two classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 8)):
        for label in "ab":
            folder = tmp_path / "tree" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
    return tmp_path / "tree"


def test_two_ranks_stage_once_and_a_killed_copy_goes_on(runner, tree, tmp_path):
    flags = [*FEW, "--data.root", str(tree)]
    plain = runner.run("plain", *flags, ranks=2)
    assert plain.code == 0, plain.output
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    flags += ["--data.stage", str(scratch)]
    killed = runner.join(runner.fork("staged", *flags, ranks=2, prepare=partial(copy_slowly, killed_at=40)), "staged")
    assert killed.code != 0
    (folder,) = scratch.iterdir()
    assert not (folder / SENTINEL).exists()
    kept = {path: path.stat().st_ino for path in folder.rglob("*.png")}
    assert 0 < len(kept) < 80
    finished = runner.join(runner.fork("staged", *flags, ranks=2, prepare=copy_slowly), "staged")
    assert finished.code == 0, finished.output
    assert json.loads((folder / SENTINEL).read_text())["files"] == 80
    assert {path: path.stat().st_ino for path in kept} == kept
    same_result(finished, plain)
    shutil.rmtree(folder / "val")
    again = runner.run("again", *flags, ranks=2)
    assert again.code == 0, again.output
    assert "data.stage: 80 files in" in again.output
