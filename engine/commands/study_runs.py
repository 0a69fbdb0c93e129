"""The runs of a study trained and audited, each by a torchrun of its own with its output in a file beside its folder.

What is finished is never trained again: a study that was stopped goes on, within a run too, with the same command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from rlpheads.engine.audits.audit_run import AUDIT_ERRORS, AuditOptions, audit_path, audit_run, write_audit
from rlpheads.engine.commands.study_plan import PlannedRun, Study
from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.runs.checkpoint import CheckpointError
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.opened_run import open_checkpoint
from rlpheads.engine.runs.resume import check_settings
from rlpheads.engine.training.label_choice import with_labels
from rlpheads.loaders.contract.errors import ImageReadError, LoaderError
from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping

_TRAIN = Path(__file__).parents[1] / "train.py"
_ONE_AUDIT = threading.Lock()
"""Audits take all cores by themselves."""


class StudyStoppedError(RuntimeError):
    """A run was stopped by a signal; the same command goes on."""


@dataclass(frozen=True)
class FailedRun:
    """A run that could not be trained or audited, and why."""

    run: PlannedRun
    reason: str


@dataclass
class _Trainings:
    """The processes that train at this moment, so that a signal to the study reaches them."""

    jobs: int
    num_ranks: int
    running: set[subprocess.Popen[bytes]]
    stopping: bool = False

    def stop(self) -> None:
        """Ask every training to save and end, once, and start no other."""
        if self.stopping:
            return
        self.stopping = True
        for process in list(self.running):
            process.terminate()

    def run(self, command: Sequence[str], log: Path) -> None:
        """Train in processes of their own, to their end."""
        ranks = ["--standalone", "--nproc-per-node", str(self.num_ranks)]
        launcher = ["-m", "torch.distributed.run", *ranks] if self.num_ranks > 1 else []  # one rank needs none
        threads = max(1, len(os.sched_getaffinity(0)) // (self.jobs * self.num_ranks))
        environment = {"OMP_NUM_THREADS": str(threads)} | os.environ if self.jobs > 1 else None
        with log.open("a") as output:
            process = subprocess.Popen(
                [sys.executable, *launcher, str(_TRAIN), *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            self.running.add(process)
            try:
                if self.stopping:  # a signal that came in between
                    process.terminate()
                process.wait()
            finally:
                self.running.discard(process)


def finish_runs(
    study: Study, runs: Sequence[PlannedRun], num_ranks: int, jobs: int, console: Console
) -> list[FailedRun]:
    """Train and audit what is left of a study, `jobs` runs at a time; a run that fails leaves the others alone.

    Raises:
        ConfigError: a folder holds a run with other settings; nothing was trained.
        StudyStoppedError: it was stopped by a signal; every run saved where it stands.
    """
    runs = list({run.folder: run for run in runs}.values())  # planned for several sources of chance, trained once
    left = [run for run in runs if not _is_finished(study, run)]
    if not left:
        return []
    failed: list[FailedRun] = []
    begun = time.monotonic()
    with _stoppable(_Trainings(jobs, num_ranks, set())) as trainings, ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_train_and_audit, study, run, trainings, console): run for run in left}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                if (reason := future.result()) is not None:
                    failed.append(FailedRun(futures[future], reason))
                rest = len(left) - done
                eta = timedelta(seconds=round((time.monotonic() - begun) / done * rest))
                ended = f"{len(runs) - rest} of {len(runs)} runs finished" + (
                    f", {len(failed)} failed" if failed else ""
                )
                console.print(ended + (f", ETA {eta}" if rest else ""), soft_wrap=True)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                trainings.stopping = True  # the trainings got the same signal from the terminal, and save
            trainings.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return failed


@contextmanager
def _stoppable(trainings: _Trainings) -> Iterator[_Trainings]:
    """Pass SIGTERM on to the trainings, which then save their state; a terminal's Ctrl-C reaches them by itself."""
    previous = signal.signal(signal.SIGTERM, lambda *_: trainings.stop())
    try:
        yield trainings
    finally:
        signal.signal(signal.SIGTERM, previous)


def _train_and_audit(study: Study, run: PlannedRun, trainings: _Trainings, console: Console) -> str | None:
    """Train a run, or the rest of it, and audit it; return why it failed, or None.

    Raises:
        StudyStoppedError: it was stopped by a signal.
    """
    if trainings.stopping:
        raise StudyStoppedError(f"{run.folder}: not begun")
    if not _is_trained(run):
        console.print(f"training {run.folder}", soft_wrap=True)
        trainings.run(run.command, log_path(run))
        status = RunFolder(run.folder).status()
        if status.get("status") == "requeue":
            raise StudyStoppedError(f"{run.folder}: {status['reason']}")
        if status.get("status") != "done":
            return f"its output is in {log_path(run)}"
    if study.audit is None or _is_audited(run, study.audit):
        return None
    with _ONE_AUDIT:
        console.print(f"auditing {run.folder}", soft_wrap=True)
        try:
            opened = open_checkpoint(run.folder, plugins=True)
            write_audit(opened, audit_run(opened, study.audit))
        except (*AUDIT_ERRORS, ImageReadError, LoaderError) as error:
            return f"it cannot be audited: {error}"
    return None


def _is_finished(study: Study, run: PlannedRun) -> bool:
    """Whether nothing is left to be done for a run; raises ConfigError if its folder has other settings."""
    return _is_trained(run) and (study.audit is None or _is_audited(run, study.audit))


def _is_trained(run: PlannedRun) -> bool:
    """Whether the run is done, with the settings of the study; raises ConfigError if it has others."""
    path = run.folder / "config.yaml"
    if RunFolder(run.folder).status().get("status") != "done" or not path.exists():
        return False
    settings = parse_config(["--config", str(path)])
    planned = run.config
    if planned.heads.labels == "auto":  # its number was chosen when the run began
        planned = with_labels(planned, settings.heads.num_labels)
    try:
        check_settings(run.folder, asdict(planned), asdict(settings))
    except CheckpointError as error:
        raise ConfigError(f"{error} ({run.settings_file} has those of the study; another folder: --out)") from error
    return True


def log_path(run: PlannedRun) -> Path:
    """Return the file of a run's output."""
    return run.folder.parent / f"{run.folder.name}.log"


def _is_audited(run: PlannedRun, options: AuditOptions) -> bool:
    """Whether the newest checkpoint has been audited with these options."""
    path = audit_path(open_checkpoint(run.folder, plugins=True), options)
    try:
        return path.exists() and parse_mapping(path.read_bytes()).get("options") == asdict(options)
    except DamagedJsonError:
        return False  # it is made again
