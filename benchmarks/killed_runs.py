"""Runs that are killed and started again by the same command until they are done, and whether they end as undisturbed.

Two ways to start a run: by forks of a process that has imported everything, which makes a start cost a second or two, and by
whole commands (`python engine/train.py`, torchrun, `rlpheads train`). Either way every rank is a process of its own, and every
signal a real one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import psutil
from typing_extensions import override

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))  # run_differences, also where this file is imported by another process

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

IMPORTED = (
    *("rlpheads.engine.train", "rlpheads.engine.training.job", "torch._dynamo", "torch.distributed.checkpoint"),
    *(
        "scipy.stats",
        "scipy.optimize",
        "matplotlib.pyplot",
        "tensorboard",
        "torch.utils.tensorboard",
        "pyarrow.parquet",
    ),
)
"""What the process that is forked has imported."""
OWN = "KILLED_RUN"
"""Environment variable by which the processes of a whole command are found again when their launcher is dead."""
LIMIT_S = 900.0
"""Seconds that one start may take: what takes longer hangs."""
_LEFT_S = 30.0
"""Seconds between SIGTERM and SIGKILL to ranks that are left when one failed, as torchrun has it."""
_LOOK_S = 0.01


class StartedRun(ABC):
    """One start of a run."""

    @abstractmethod
    def ranks(self) -> dict[int, int]:
        """Return the process of each rank that lives, by its number."""

    @property
    def launcher(self) -> int | None:
        """The process of the launcher, if there is one and it lives."""
        return None

    @abstractmethod
    def has_ended(self) -> bool:
        """Whether no process of this start is left."""

    @property
    @abstractmethod
    def code(self) -> int | None:
        """The exit code: the launcher's, or the first one that is not 0; negative for a signal; None before the end."""

    @abstractmethod
    def kill(self) -> None:
        """End all processes of this start."""


class ForkedRun(StartedRun):
    """Ranks forked off a process that has imported everything; where one fails the others are ended, as torchrun does.

    Args:
        arguments: of engine/train.py.
        num_ranks: forked.
        log: gets what they print.
        prepare: called in each rank before it begins, with its number.
    """

    def __init__(
        self, arguments: Sequence[str], num_ranks: int, log: Path, prepare: Callable[[int], None] | None = None
    ):
        context = _forking()
        self._failed_since: float | None = None
        self._ranks = []
        variables = [rank_variables(rank, num_ranks, port) for port in [free_port()] for rank in range(num_ranks)]
        for rank in range(num_ranks):
            started = context.Process(target=_forked_rank, args=(arguments, variables[rank], log, prepare))
            started.start()
            self._ranks.append(started)

    @override
    def ranks(self) -> dict[int, int]:
        return {number: rank.pid for number, rank in enumerate(self._ranks) if rank.is_alive() and rank.pid}

    @override
    def has_ended(self) -> bool:
        if not (living := [rank for rank in self._ranks if rank.is_alive()]):
            return True
        if any(rank.exitcode for rank in self._ranks):
            now = time.monotonic()
            if self._failed_since is None:
                self._failed_since = now
                for rank in living:
                    rank.terminate()
            elif now - self._failed_since > _LEFT_S:
                self.kill()
        return False

    @property
    @override
    def code(self) -> int | None:
        codes = [rank.exitcode for rank in self._ranks]
        return next((code for code in codes if code), None if None in codes else 0)

    @override
    def kill(self) -> None:
        for rank in self._ranks:
            rank.kill()


def _forking() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_runs", *IMPORTED])
    return context


def import_once() -> None:
    """Start the process that ranks are forked off, and wait until it has imported everything.

    Under nohup SIGHUP is ignored, by all that is started, too: runs respect that, and would not meet it.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    first = _forking().Process(target=time.sleep, args=(0,))
    first.start()
    first.join()


def _forked_rank(
    arguments: Sequence[str], variables: Mapping[str, str], log: Path, prepare: Callable[[int], None] | None
) -> None:
    from rlpheads.engine import train

    os.environ.update(variables)
    with log.open("a") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    sys.argv = ["engine/train.py", *arguments]
    if prepare is not None:
        prepare(int(variables.get("RANK", 0)))
    sys.exit(train.main())


def rank_variables(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """Return what torchrun would tell a rank; nothing where there is one alone."""
    if num_ranks == 1:
        return {}
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks), **place}


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


class CommandRun(StartedRun):
    """A whole command, with all its processes.

    Args:
        command: its words.
        log: gets what it prints.
    """

    def __init__(self, command: Sequence[str], log: Path):
        self._mark = f"{log}.{time.monotonic_ns()}"
        with log.open("a") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, OWN: self._mark},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._is_launcher = "--nproc-per-node" in command

    @override
    def ranks(self) -> dict[int, int]:
        if not self._is_launcher:
            return {0: self._process.pid} if self._process.poll() is None else {}
        found: dict[int, int] = {}
        with suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children():
                with suppress(psutil.Error, KeyError):
                    found[int(child.environ()["RANK"])] = child.pid
        return found

    @property
    @override
    def launcher(self) -> int | None:
        return self._process.pid if self._is_launcher and self._process.poll() is None else None

    @override
    def has_ended(self) -> bool:
        return self._process.poll() is not None and not any(True for _ in self._left())

    @property
    @override
    def code(self) -> int | None:
        return self._process.poll()

    @override
    def kill(self) -> None:
        self._process.kill()
        for process in self._left():
            with suppress(psutil.Error):
                process.kill()

    def _left(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(OWN) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process


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


def send(number: signal.Signals, processes: Sequence[int]) -> bool:
    """Send a signal to processes; return whether one of them lived."""
    sent = False
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)
            sent = True
    return sent


def wait(started: StartedRun, until: Callable[[], bool] = lambda: False, limit_s: float = LIMIT_S) -> bool:
    """Wait for the end of a start, or until something is so; return whether it is in time. All is killed where it is not."""
    deadline = time.monotonic() + limit_s
    while not started.has_ended() and not until():
        if time.monotonic() > deadline:
            started.kill()
            return False
        time.sleep(_LOOK_S if isinstance(started, ForkedRun) else 5 * _LOOK_S)
    return True


def differences(run: Path, undisturbed: Path) -> list[str]:
    """Return in what a run is not the undisturbed one: every file of the record, and what is left of writes.

    Weights' hashes and figures of status.json, all ledgers bit by bit, metrics.jsonl line by line in its order, summary.csv,
    and names and content of the checkpoints' files. Not the clock's columns (run_differences.CLOCK_FIGURES).
    """
    from run_differences import CLOCK_FIGURES, compare_folders

    found = [
        f"{section.name}, {each.place}, {each.figure}: {each.left} instead of {each.right}"
        for section in compare_folders(run, undisturbed)
        for each in section.differences
    ]
    ours, theirs = ([_without(row, CLOCK_FIGURES) for row in _lines(each)] for each in (run, undisturbed))
    if ours != theirs:
        found.append(f"metrics.jsonl: {len(ours)} lines instead of {len(theirs)}, or in another order")
    names = [{str(path.relative_to(each)) for path in each.rglob("*")} for each in (run, undisturbed)]
    odd = sorted(name for name in names[0] ^ names[1] if not name.startswith("tensorboard/"))
    found += [f"{name}: {'left' if name in names[0] else 'missing'}" for name in odd]
    found += [f"{name}: other content" for name in _differing_checkpoints(run, undisturbed)]
    return found


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _without(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    return {name: repr(value) for name, value in row.items() if name not in names}


def _differing_checkpoints(run: Path, undisturbed: Path) -> Iterator[str]:
    """Yield the checkpoints that both have and whose tensors are not the same to the bit."""
    for folder in sorted((undisturbed / "checkpoints").glob("step=*")):
        ours = run / "checkpoints" / folder.name
        names = [path.name for path in folder.glob("*.distcp")]
        if ours.exists() and any((ours / name).read_bytes() != (folder / name).read_bytes() for name in names):
            yield folder.name


def clear(case: Case, name: str) -> None:
    """Delete a run and what it printed."""
    shutil.rmtree(case.run_folder(name), ignore_errors=True)
    case.log(name).unlink(missing_ok=True)
