"""Two ranks on two nodes: the main rank scans the tree, and the other takes its listing after a look at its own files."""

import shutil
from functools import partial

import numpy as np
import pytest
from node_trees import as_node
from PIL import Image

pytestmark = [pytest.mark.distributed, pytest.mark.long]

FLAGS = ["--data.dataset", "imagefolder", "--data.root", "$NODE_IMAGES", "--epochs", "1", "--batch_size", "20"]
FLAGS += ["--heads.labels", "5"]


@pytest.fixture
def nodes(tmp_path):
    """32 training and 8 held-out images of two classes, on each of two nodes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for label in "ab":
            folder = tmp_path / "node0" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number:02d}.bmp")
    shutil.copytree(tmp_path / "node0", tmp_path / "node1")
    return tmp_path / "node0", tmp_path / "node1"


@pytest.mark.parametrize("held_out", ["null", "0.25"])
def test_a_tree_is_scanned_once_for_all_ranks(runner, nodes, tmp_path, held_out):
    scans, name = tmp_path / "scans", f"once_{held_out}"
    roots = nodes if held_out == "null" else tuple(node / "train" for node in nodes)
    flags = [*FLAGS, "--data.val_fraction", held_out, "--data.subset.per_class", "10"]
    ran = runner.join(runner.fork(name, *flags, ranks=2, prepare=partial(as_node, roots=roots, scans=scans)), name)
    assert ran.code == 0, ran.output
    folders = [roots[0] / "train", roots[0] / "val"] if held_out == "null" else [roots[0]]
    assert sorted(scans.read_text().splitlines()) == [f"0 {folder}" for folder in folders]
    (epoch,) = ran.rows("epoch")
    assert epoch["epoch"] == 0
    trained = ran.ledgers["ledger/epoch=0000/running.parquet"]
    assert trained["count"].to_pylist() == [1] * 20


def test_a_node_with_other_files_is_named_before_the_first_step(runner, nodes, tmp_path):
    victim = nodes[1] / "train" / "a" / "03.bmp"
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x7f")  # as many bytes
    as_nodes = partial(as_node, roots=nodes, scans=tmp_path / "scans")
    ran = runner.join(runner.fork("other", *FLAGS, "--data.val_fraction", "null", ranks=2, prepare=as_nodes), "other")
    assert ran.code == 1, ran.output
    said = f"rank 1 sees other images than rank 0 in {nodes[1] / 'train'}: files are missing or differ"
    assert said in ran.output
    assert not (ran.folder / "metrics.jsonl").exists()
