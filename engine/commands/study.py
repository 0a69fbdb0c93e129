"""`rlpheads study STUDY.yaml`: trains every run of a study that is not finished, audits it, and compares what all found."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rlpheads.engine import exit_codes
from rlpheads.engine.report.console import open_console
from rlpheads.engine.terminal.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Train every run of a study (arms x grid x seeds) that is not finished, audit it, and report means with intervals "
        "across seeds. The same command goes on where it was stopped."
    )
    add = parser.add_argument
    add("file", metavar="STUDY", type=Path, help="YAML or TOML file, such as those in studies/")
    add("--out", type=Path, help="folder of the runs and the results; default: runs/STUDY")
    add("--nproc-per-node", type=int, default=1, help="processes of each run; default: 1")
    add(
        "--jobs",
        type=int,
        default=1,
        help="runs that are trained at a time, on an equal share of the cores; default: 1",
    )
    add("--json", action="store_true", help="print what is written, in place of the table")


def run(arguments: argparse.Namespace) -> int:
    """Run what is left of a study, then write and print what it found; return the exit code.

    1: a run failed (the others are trained and reported); 75: it was stopped by a signal.
    """
    from rlpheads.engine.audits.audit_run import AUDIT_ERRORS  # imports torch
    from rlpheads.engine.commands.study_folder import claim_study_folder
    from rlpheads.engine.commands.study_plan import plan_runs, read_study
    from rlpheads.engine.commands.study_report import collect_study, print_study, write_study
    from rlpheads.engine.commands.study_runs import StudyStoppedError, finish_runs
    from rlpheads.engine.runs.folder import json_text
    from rlpheads.loaders.contract.errors import ImageReadError, LoaderError

    if arguments.jobs < 1:
        return exit_codes.report_error(f"--jobs: got {arguments.jobs}; allowed: a number at least 1")
    console, num_ranks = open_console(stderr=arguments.json), arguments.nproc_per_node
    try:
        study = read_study(arguments.file)
        folder = arguments.out or Path("runs") / study.name
        claim_study_folder(folder)
        runs = plan_runs(study, folder, num_ranks)
        failed = finish_runs(study, runs, num_ranks, arguments.jobs, console)
        lost = [each.run.folder for each in failed]
        found = collect_study(study, [each for each in runs if each.folder not in lost])
    except AUDIT_ERRORS as error:
        return exit_codes.report_error(error)
    except (ImageReadError, LoaderError) as error:
        return exit_codes.report_error(error, exit_codes.FAILED)
    except (StudyStoppedError, KeyboardInterrupt) as error:
        print(f"stopped: {printable(error) or 'interrupted'}; the same command goes on", file=sys.stderr)
        return exit_codes.REQUEUE
    written = write_study(folder, found)
    if arguments.json:
        print(json_text(found, indent=2), end="")
    else:
        print_study(found, console)
        console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)
    for each in failed:
        print(printable(f"failed: {each.run.folder}; {each.reason}"), file=sys.stderr)
    return exit_codes.FAILED if failed else exit_codes.DONE
