"""Real runs on the digits, with a network of seconds, and whether two ended alike.

By whole commands (torchrun, python) where a test starts, signals or kills them, and by forks of a process that has imported
everything where a run just goes to its end: a start costs a second and not ten.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forked_run import ForkedRun
from started_run import wait

ROOT = Path(__file__).parent.parent.parent
TINY = """
epochs: 2
batch_size: 64
log_every: 1
device: cpu
data:
  {dataset: digits, val_fraction: 0.2, workers: 0, image_size: 8, hflip: 0, crop_scale: [0.8, 1], eval_crop_fraction: 1}
model:
  name: vit_tiny_patch16_224
  args: {img_size: 8, patch_size: 4, embed_dim: 24, depth: 2, num_heads: 2, drop_rate: 0.1}
heads: {labels: 10, optim: {lr: 0.01}}
"""


@dataclass(frozen=True)
class Finished:
    """A run that ended."""

    code: int
    output: str
    folder: Path

    @property
    def status(self) -> dict[str, Any]:
        return json.loads((self.folder / "status.json").read_text())

    def rows(self, kind: str) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [row for row in rows if row["kind"] == kind]

    @property
    def ledgers(self) -> dict[str, pa.Table]:
        """Every ledger file, by its path inside the run."""
        paths = sorted(self.folder.glob("ledger/*/*.parquet"))
        return {str(path.relative_to(self.folder)): pq.read_table(path) for path in paths}


class Runner:
    """Starts runs under one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = folder / "tiny.yaml"
        self.config.write_text(TINY)

    def command(self, name: str, *flags: str, ranks: int = 1) -> list[str]:
        """Return the command of a run: `torchrun engine/train.py`, and python alone for one rank."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        if ranks == 1:
            launcher = [sys.executable]
        return [*launcher, str(ROOT / "engine" / "train.py"), *self._arguments(name, *flags)]

    def train_command(self, name: str, *flags: str, ranks: int = 1) -> list[str]:
        """Return the command of a run: `rlpheads train`."""
        launcher = [sys.executable, "-m", "rlpheads.engine.cli", "train", "--nproc-per-node", str(ranks)]
        return [*launcher, *self._arguments(name, *flags)]

    def _log(self, name: str) -> Path:
        return self.folder / f".{name}.txt"

    def _arguments(self, name: str, *flags: str) -> list[str]:
        return ["--config", str(self.config), "--run.dir", str(self.folder), "--run.name", name, *flags]

    def start(self, name: str, *flags: str, ranks: int = 1) -> "subprocess.Popen[str]":
        return self.start_command(self.command(name, *flags, ranks=ranks))

    def start_command(self, command: list[str]) -> "subprocess.Popen[str]":
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, process: "subprocess.Popen[str]", name: str, limit_s: float = 240) -> Finished:
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"the run hangs:\n{output}")
        return Finished(process.returncode, output, self.folder / name)

    def run_command(self, name: str, *flags: str, ranks: int = 1) -> Finished:
        """Run a whole command to its end."""
        return self.finish(self.start(name, *flags, ranks=ranks), name)

    def run(self, name: str, *flags: str, ranks: int = 1) -> Finished:
        """Run to its end, by forks."""
        return self.join(self.fork(name, *flags, ranks=ranks), name)

    def fork(self, name: str, *flags: str, ranks: int = 1, prepare: Callable[[int], None] | None = None) -> ForkedRun:
        """Start a run by forks; `prepare` is called in each, with its rank."""
        self._log(name).write_text("")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return ForkedRun(self._arguments(name, *flags), ranks, self._log(name), prepare, environment)

    def join(self, forked: ForkedRun, name: str) -> Finished:
        """Wait for the end of forks; the exit code is the first failed rank's."""
        if not wait(forked, limit_s=240):
            pytest.fail(f"the run hangs:\n{self._log(name).read_text()}")
        assert forked.code is not None
        return Finished(forked.code, self._log(name).read_text(), self.folder / name)

    def kill(self, process: "subprocess.Popen[str]") -> None:
        """Take a run away with SIGKILL, all of its processes, if it has not ended by itself."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def wait_for_step(self, name: str, step: int, process: "subprocess.Popen[str] | ForkedRun") -> None:
        """Return as soon as the run has recorded a step at or past `step`."""
        metrics = self.folder / name / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            # Asked before the record is read, which may have got there by then.
            has_ended = process.has_ended() if isinstance(process, ForkedRun) else process.poll() is not None
            lines = []
            with suppress(FileNotFoundError):  # not begun, or just being cleared
                lines = metrics.read_text().splitlines()
            if any(json.loads(line)["step"] >= step for line in lines if line.endswith("}")):
                return
            if has_ended:
                output = self._log(name).read_text() if isinstance(process, ForkedRun) else process.communicate()[0]
                pytest.fail(f"the run ended before step {step}:\n{output}")
            time.sleep(0.01)
        pytest.fail(f"step {step} was not reached")


def rank_processes(launcher: "subprocess.Popen[str]") -> dict[int, psutil.Process]:
    """Return the ranks that a launcher has started, by number; a loader worker inherits its rank's environment."""
    ranks: dict[int, psutil.Process] = {}
    for child in psutil.Process(launcher.pid).children():
        with suppress(psutil.Error, KeyError):  # gone, or not a rank yet
            ranks[int(child.environ()["RANK"])] = child
    return ranks


def without_times(rows):
    times = ("images_per_second", "data_wait", "seconds", "device_seconds")
    times += ("slowest_rank", "slowest_rank_seconds", "slowest_rank_data_wait")
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


def table_bytes(table):
    """Every column's content, NaN being equal to itself, and the metadata."""
    return str(table.schema.metadata), [str(column.to_pylist()) for column in table.columns]


def same_result(finished, undisturbed):
    assert finished.status["weights_sha256"] == undisturbed.status["weights_sha256"]
    ours, theirs = finished.ledgers, undisturbed.ledgers
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert table_bytes(ours[name]) == table_bytes(theirs[name]), name
    assert without_times(finished.rows("epoch")) == without_times(undisturbed.rows("epoch"))
    assert [row["step"] for row in finished.rows("step")] == [row["step"] for row in undisturbed.rows("step")]
