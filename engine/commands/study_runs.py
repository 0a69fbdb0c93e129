"""The runs of a study trained and audited, each by a torchrun of its own with its output in a file beside its folder.

What is finished is never trained again: a study that was stopped goes on, within a run too, with the same command.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from rlpheads.engine.audits.audit_run import AuditOptions, audit_path, audit_run, write_audit
from rlpheads.engine.commands.study_plan import PlannedRun, Study
from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.runs.checkpoint import CheckpointError
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.opened_run import open_checkpoint
from rlpheads.engine.runs.resume import check_settings
from rlpheads.engine.training.label_choice import with_labels
from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping

_TRAIN = Path(__file__).parents[1] / "train.py"


class StudyStoppedError(RuntimeError):
    """A run was stopped by a signal; the same command goes on."""


def train_and_audit(study: Study, run: PlannedRun, num_ranks: int, console: Console) -> bool:
    """Train a run, or the rest of it, and audit it; return whether it is done.

    Raises:
        ConfigError: the folder holds a run with other settings.
        StudyStoppedError: it was stopped by a signal.
    """
    if not _is_trained(run):
        console.print(f"training {run.folder}", soft_wrap=True)
        if not _train(run, num_ranks):
            return False
    if study.audit is not None and not _is_audited(run, study.audit):
        console.print(f"auditing {run.folder}", soft_wrap=True)
        opened = open_checkpoint(run.folder)
        write_audit(opened, audit_run(opened, study.audit))
    return True


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


def _train(run: PlannedRun, num_ranks: int) -> bool:
    """Train a run in processes of its own; return whether it is done, and raise StudyStoppedError if it was stopped."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    with log_path(run).open("a") as log:
        process = subprocess.Popen([*launcher, str(_TRAIN), *run.command], stdout=log, stderr=subprocess.STDOUT)
        # SIGTERM is passed on: the run then saves its state.
        previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            process.wait()
        except KeyboardInterrupt:
            process.wait()  # torchrun got the same signal from the terminal
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
    status = RunFolder(run.folder).status()
    if status.get("status") == "requeue":
        raise StudyStoppedError(f"{run.folder}: {status['reason']}")
    return status.get("status") == "done"


def log_path(run: PlannedRun) -> Path:
    """Return the file of a run's output."""
    return run.folder.parent / f"{run.folder.name}.log"


def _is_audited(run: PlannedRun, options: AuditOptions) -> bool:
    """Whether the newest checkpoint has been audited with these options."""
    path = audit_path(open_checkpoint(run.folder), options.probe)
    try:
        return path.exists() and parse_mapping(path.read_bytes()).get("options") == asdict(options)
    except DamagedJsonError:
        return False  # it is made again
