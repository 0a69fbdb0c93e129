"""`rlpheads audit RUN`: refits probes to the features of a checkpoint, for a table and a file of what they found."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlpheads.engine import exit_codes
from rlpheads.engine.report.console import open_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Refit probes to frozen features of a run. Label excess: does a tap hold the run's own random labels? Membership "
        "excess: are training images told apart more easily than held-out ones? Writes RUN/audit/*.json."
    )
    add = parser.add_argument
    add("folder", metavar="RUN", type=Path, help="run folder")
    add("--epoch", type=int, help="the checkpoint of the end of this epoch; default: the newest one")
    add(
        "--taps",
        help="places such as 0,-1,3.attn (in block 3, after its attention); all: every block; inside: after attention "
        "and after MLP of every block; default: the run's own taps. A list that begins with - needs =: --taps=-1,0",
    )
    add("--probe", default="least_squares", help="least_squares (default), logistic or two_layer")
    add("--hidden", type=int, help="hidden units of two_layer")
    add(
        "--draws",
        type=int,
        help="fresh draws of the labels, at least 4; default: for least_squares as many as a half-width of half a point "
        "needs, within some seconds a tap; 8 for other probes",
    )
    add(
        "--level",
        type=float,
        default=0.95,
        help="coverage of the intervals, which hold at all taps together; default: 0.95",
    )
    add("--root", type=Path, help="folder of the images, if they were moved since the run")
    add(
        "--plugins",
        action="store_true",
        help="import the plug-ins that the run names, which are code of whoever made it",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if there is one")
    add("--json", action="store_true", help="print what is written, in place of the table")


def run(arguments: argparse.Namespace) -> int:
    """Audit a run folder, write what was found into it and print it; return the exit code."""
    from rlpheads.engine.audits.audit_run import AUDIT_ERRORS, AuditOptions, audit_run, write_audit  # imports torch
    from rlpheads.engine.audits.audit_table import print_audit
    from rlpheads.engine.runs.opened_run import open_checkpoint
    from rlpheads.loaders.contract.errors import ImageReadError, LoaderError

    names = ("taps", "probe", "hidden", "draws", "level", "device")
    options = AuditOptions(**{name: getattr(arguments, name) for name in names})
    try:
        opened = open_checkpoint(arguments.folder, arguments.epoch, arguments.root, plugins=arguments.plugins)
        audit = audit_run(opened, options)
    except AUDIT_ERRORS as error:
        return exit_codes.report_error(error)
    except (ImageReadError, LoaderError) as error:
        return exit_codes.report_error(error, exit_codes.FAILED)
    console = open_console(stderr=arguments.json)
    if arguments.json:
        print(audit.to_json(), end="")
    else:
        print_audit(audit, console)
    try:
        path = write_audit(opened, audit)
    except OSError as error:  # what was found is printed
        return exit_codes.report_error(error, exit_codes.FAILED)
    if not arguments.json:
        console.print(f"written: {path}", soft_wrap=True)
    return exit_codes.DONE
