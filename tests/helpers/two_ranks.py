"""Somebody else's loop over two ranks, in a process each: what its callback wrote, and whether the ranks' heads are one."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlpheads.memorization.records.ledger_file import LedgerTable, read_ledger

NUM_CLASSES = 3


def epoch_ledger(folder: Path, epoch: int) -> LedgerTable:
    """Read what an epoch of training left, in which every sample i was reached, of class i modulo three."""
    table = read_ledger(folder / "ledger" / f"epoch={epoch:04d}" / "running.parquet")
    assert table.seen.all()
    assert table.target.tolist() == [int(index) % NUM_CLASSES for index in table.index]
    return table


def ledger_of_two_ranks(script: Path, folder: Path, num_samples: int) -> LedgerTable:
    """Run a script, whose ranks end with `save_heads`, by torchrun, and return the ledger of its first epoch."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}  # the script imports this file, too
    command = [*launch, str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    states = [torch.load(folder / f"heads{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(states[0], states[1])
    table = epoch_ledger(folder, 0)
    assert len(table.index) == num_samples
    return table


def save_heads(state: Mapping[str, Any], folder: Path, rank: int) -> None:
    """Keep what a rank's heads ended as, for the process that started the ranks."""
    torch.save(state, folder / f"heads{rank}.pt")
