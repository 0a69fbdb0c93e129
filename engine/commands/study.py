"""`rlpheads study STUDY.yaml`: trains every run of a study that is not finished, audits it, and says what all of them found.

Each run is a torchrun of its own, with its output in a file beside its folder. What is finished is never trained again: a
study that was stopped goes on, within a run too, when the same command is given again.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from rlpheads.engine.commands.audit import AuditOptions, audit_path, audit_run, write_audit
from rlpheads.engine.commands.study_plan import PlannedRun, Study, plan_runs, read_study
from rlpheads.engine.commands.study_report import collect_study, print_study, write_study
from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.runs.checkpoint import CheckpointError
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.opened_run import open_run
from rlpheads.engine.runs.resume import check_settings
from rlpheads.engine.training.label_choice import with_labels

EXIT_REQUEUE = 75
_TRAIN = Path(__file__).parents[1] / "train.py"


class StudyStoppedError(RuntimeError):
    """A run was stopped by a signal; the same command goes on."""


def run_study(path: Path, folder: Path | None, num_ranks: int, *, as_json: bool) -> int:
    """Run what is left of a study, then write and print what it found; return the exit code.

    Args:
        path: the study's file.
        folder: where its runs are; None: runs/NAME.
        num_ranks: processes of each run.
        as_json: print the results as JSON in place of the table.

    Returns:
        0; 1 if a run failed (the others are trained and reported); 2 if the study cannot be run as it is; 75 if it was
        stopped by a signal.
    """
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 200, highlight=False)
    try:
        study = read_study(path)
        folder = folder or Path("runs") / study.name
        runs = plan_runs(study, folder, num_ranks)
        failed = [run for run in runs if not _carry_out(study, run, num_ranks, console)]
        found = collect_study(study, [run for run in runs if run not in failed])
    except ValueError as error:  # ConfigError, RunError, CheckpointError: each with the one message a user needs
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (StudyStoppedError, KeyboardInterrupt) as error:
        print(f"stopped: {error or 'interrupted'}; the same command goes on", file=sys.stderr)
        return EXIT_REQUEUE
    written = write_study(folder, found)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_study(found, console)
        console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)
    for run in failed:
        print(f"failed: {run.folder}; its output is in {_log(run)}", file=sys.stderr)
    return int(bool(failed))


def _carry_out(study: Study, run: PlannedRun, num_ranks: int, console: Console) -> bool:
    """Train a run, or the rest of it, and audit it; return whether it is done.

    Raises:
        ConfigError: the folder holds a run with other settings.
        StudyStoppedError: it was stopped by a signal.
    """
    if not _is_done(run):
        console.print(f"training {run.folder}", soft_wrap=True)
        if not _train(run, num_ranks):
            return False
    if study.audit is not None and not _is_audited(run, study.audit):
        console.print(f"auditing {run.folder}", soft_wrap=True)
        opened = open_run(run.folder)
        write_audit(opened, audit_run(opened, study.audit))
    return True


def _is_done(run: PlannedRun) -> bool:
    settings = run.folder / "config.yaml"
    if RunFolder(run.folder).status().get("status") != "done" or not settings.exists():
        return False
    begun = parse_config(["--config", str(settings)])
    asked = run.config
    if asked.heads.labels == "auto":  # settled when the run began
        asked = with_labels(asked, begun.heads.num_labels)
    try:
        check_settings(run.folder, asdict(asked), asdict(begun))
    except CheckpointError as error:
        raise ConfigError(f"{error} ({run.settings_file} has those of the study; another folder: --out)") from error
    return True


def _train(run: PlannedRun, num_ranks: int) -> bool:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    with _log(run).open("a") as log:
        process = subprocess.Popen([*launcher, str(_TRAIN), *run.command], stdout=log, stderr=subprocess.STDOUT)
        before = signal.signal(
            signal.SIGTERM, lambda *_: process.terminate()
        )  # passed on: the run saves where it stands
        try:
            process.wait()
        except KeyboardInterrupt:
            process.wait()  # torchrun got the same signal from the terminal
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    status = RunFolder(run.folder).status()
    if status.get("status") == "requeue":
        raise StudyStoppedError(f"{run.folder}: {status['reason']}")
    return status.get("status") == "done"


def _log(run: PlannedRun) -> Path:
    return run.folder.parent / f"{run.folder.name}.log"


def _is_audited(run: PlannedRun, options: AuditOptions) -> bool:
    """Whether the newest checkpoint has been audited in this very manner."""
    path = audit_path(open_run(run.folder), options.probe)
    return path.exists() and json.loads(path.read_text()).get("options") == asdict(options)
