"""Heads sharded by class over real ranks: the native loss, checkpoints at other numbers of ranks, and whole runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).parent.parent / "helpers" / "sharded_ranks.py"


def told_by_ranks(num_ranks: int, *arguments: str) -> Any:
    """What the main rank of `sharded_ranks.py` prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    ended = subprocess.run(
        [*command, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("num_ranks", "number"), [(3, 30), *(pytest.param(ranks, 300, marks=pytest.mark.slow) for ranks in (2, 4, 7))]
)
def test_drawn_heads_over_real_ranks_some_of_which_hold_no_label(num_ranks, number):
    """By the native loss, whatever lay in memory before."""
    for of_rank in told_by_ranks(num_ranks, "draws", str(number)):
        assert len(of_rank) == 1 + number
        assert of_rank.pop("hits that differ") == 0
        assert {drawn: error for drawn, error in of_rank.items() if not error <= 1e-5} == {}


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_native_loss_over_real_ranks(num_ranks):
    for of_rank in told_by_ranks(num_ranks, "compare"):
        assert len(of_rank) == 4 * 21
        assert max(of_rank.values()) <= 1e-5, of_rank
        assert sum(value for name, value in of_rank.items() if name.endswith("hits that differ")) == 0


@pytest.mark.parametrize(
    ("num_ranks", "num_labels", "in_ranges"),
    [
        (3, 601, True),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((2, 3001, True), (2, 7, True), (2, 3001, False))),
        pytest.param(2, 7, False, marks=pytest.mark.slow),
    ],
)
def test_gradients_that_travel_as_they_are_made_are_those_of_ddp(num_ranks, num_labels, in_ranges):
    """Of heads of many labels and of few, in ranges or averaged whole, with hidden layers, two micro-batches and clipping.

    Ranks hold optimizer states of their own ranges, and the same weights to the last bit; a step that is left out changes none.
    """
    told = told_by_ranks(num_ranks, "average", str(num_labels), "1" if in_ranges else str(2**30), "5")
    held = -(-num_labels // num_ranks) if in_ranges else num_labels
    check_both_ways(told, [5 * held] * 3, num_labels)


def test_heads_in_ranges_beside_narrower_ones_that_are_averaged_whole():
    """As taps of a ResNet have: each gradient is averaged once, however many travel after it."""
    told = told_by_ranks(2, "average", "601", str(8 * 601), "0")
    check_both_ways(told, [6 * 601, 9 * 301, 9 * 301], 601)


def check_both_ways(told: Any, stepped_of_weights: list[int], num_labels: int) -> None:
    """Both ways end alike, and the main rank holds states of so many numbers of each tap's weight."""
    assert len(told) == 3
    for of_optimizer in told:
        assert max(of_optimizer["errors"].values()) <= 1e-5
        assert of_optimizer["untouched"]
        assert of_optimizer["different_weights"] == 1
        for tap, stepped in enumerate(stepped_of_weights):
            assert set(of_optimizer["states"][f"heads.{tap}.0.weight"]) == {stepped}
            assert set(of_optimizer["states"][f"heads.{tap}.0.bias"]) == {num_labels}


@pytest.mark.slow
@pytest.mark.parametrize(
    "chain",
    [
        [(1, "class"), (3, "class"), (16, "class"), (5, "class")],
        [(2, "none"), (3, "class"), (2, "none"), (1, "class")],
        [(2, "none, whole"), (3, "none"), (2, "none"), (2, "none, whole")],
    ],
    ids=["1, 3, 16 and 5 ranks", "whole heads and back", "stepped whole and in ranges"],
)
def test_checkpoints_load_at_any_number_of_ranks(chain, tmp_path):
    """Gathered weights and optimizer states to the last bit, losses to rounding."""
    before = None
    for number, (num_ranks, shard) in enumerate(chain):
        told = told_by_ranks(num_ranks, "checkpoint", str(tmp_path), str(number), shard)
        if before is not None:
            assert told["loaded"] == before["saved"]
            assert told["loss"] == pytest.approx(before["saved loss"], rel=1e-6)
            assert told["saved"] != told["loaded"]
        before = told
