"""Runs that are killed and started again by the same command until they are done: their settings, and how they are started.

Two ways to start a run: by forks (forked_run.py) and by whole commands (command_run.py). What they hold in the end is compared
by run_comparison.py.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from command_run import ROOT, CommandRun
from forked_run import ForkedRun
from started_run import StartedRun

SETTINGS = """\
epochs: 3
batch_size: 32
log_every: 2
device: cpu
data:
  {dataset: digits, val_fraction: 0.1, workers: 0, image_size: 8, hflip: 0, crop_scale: [0.8, 1], eval_crop_fraction: 1,
   subset: {fraction: 0.1}}
model:
  name: vit_tiny_patch16_224
  args: {img_size: 8, patch_size: 4, embed_dim: 24, depth: 2, num_heads: 2, drop_rate: 0.1}
heads: {labels: 10, optim: {lr: 0.01}}
checkpoint: {every_steps: 2}
log: {tensorboard: false}
"""
RECIPES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "averaged": (
        *(
            "--model.ema_decay",
            "0.9",
            "--accumulate",
            "2",
            "--regularizer.kind",
            "uniform",
            "--regularizer.factor",
            "1",
        ),
        *("--data.mix.mixup", "0.2", "--data.mix.cutmix", "1", "--log.tensorboard", "true", "--log_every", "3"),
    ),
    "half": (
        *("--precision", "fp16", "--loss_scale.initial", "1e18", "--loss_scale.growth_every", "5"),
        *("--checkpoint.every_steps", "3"),
    ),
    "worker": ("--data.workers", "1", "--checkpoint.every_steps", "4"),
}
"""Settings on top of SETTINGS, by name."""


@dataclass(frozen=True)
class Way:
    """How a run is started.

    Attributes:
        name: shown.
        num_ranks: of the run.
        is_whole: whether a start is a whole command.
        restarts: how often its launcher starts killed ranks again.
    """

    name: str
    num_ranks: int
    is_whole: bool = True
    restarts: int = 0

    def start(self, arguments: Sequence[str], log: Path) -> StartedRun:
        """Start a run with these arguments of engine/train.py."""
        if not self.is_whole:
            return ForkedRun(arguments, self.num_ranks, log)
        place = ["--nproc-per-node", str(self.num_ranks), "--max-restarts", str(self.restarts)]
        program = str(ROOT / "engine" / "train.py")
        words = {
            "python": [program],
            "torchrun": ["-m", "torch.distributed.run", "--standalone", *place, program],
            "rlpheads": ["-m", "rlpheads.engine.cli", "train", *place],
        }[self.name.split()[0]]
        return CommandRun([sys.executable, *words, *arguments], log)


@dataclass(frozen=True)
class Case:
    """A run that is disturbed: its settings, and the folder with all runs of the campaign."""

    folder: Path
    recipe: str
    way: Way
    flags: tuple[str, ...] = ()

    def arguments(self, name: str) -> list[str]:
        """Return the arguments of engine/train.py of a run of this name."""
        settings = self.folder / "settings.yaml"
        settings.write_text(SETTINGS)
        place = ["--config", str(settings), "--run.dir", str(self.folder / "runs"), "--run.name", name]
        return [*place, *RECIPES[self.recipe], *self.flags]

    def run_folder(self, name: str) -> Path:
        """Return the folder of a run of this name."""
        return self.folder / "runs" / name

    def log(self, name: str) -> Path:
        """Return the file with what the starts of a run of this name print."""
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        return self.folder / "logs" / f"{name}.txt"


def last_step(run: Path) -> int:
    """Return the last step that a run has recorded."""
    with suppress(OSError, ValueError, IndexError, KeyError):
        return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    return 0


def status_of(run: Path) -> str:
    """Return the status of a run: running, requeue, failed, done or nothing."""
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads((run / "status.json").read_text())["status"])
    return ""


def clear(case: Case, name: str) -> None:
    """Delete a run and what it printed."""
    shutil.rmtree(case.run_folder(name), ignore_errors=True)
    case.log(name).unlink(missing_ok=True)
