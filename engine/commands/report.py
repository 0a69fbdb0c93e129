"""`rlpheads report RUN [RUN ...]`: what runs found, as one HTML page that needs nothing else."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rlpheads.engine import exit_codes
from rlpheads.engine.terminal.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Write one HTML page on one run or several, from their folders alone: the verdict with its intervals, settings, "
        "curves, random-label accuracy by depth, pictures, classes, canaries, audits, membership inference, and what is not "
        "shown. It loads nothing from anywhere."
    )
    add = parser.add_argument
    add("folders", metavar="RUN", nargs="+", type=Path, help="run folders")
    add("--out", type=Path, help="file; default: report.html in the folder of the first run")
    add("--anonymous", action="store_true", help="without pictures, names of files, classes, runs and places")
    add("--root", type=Path, help="folder of the images, if they were moved since the run")
    add(
        "--plugins",
        action="store_true",
        help="import the plug-ins that the runs name, where pictures are a plug-in's: code of whoever made them",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page; return the exit code."""
    from rlpheads.engine.config.errors import UserError  # what follows imports torch
    from rlpheads.engine.page.facts import read_facts
    from rlpheads.engine.page.render import render_page
    from rlpheads.engine.runs.folder import write_atomically
    from rlpheads.engine.tables.run_tables import TABLE_ERRORS

    out = arguments.out or arguments.folders[0] / "report.html"
    try:
        options = {name: getattr(arguments, name) for name in ("anonymous", "root", "plugins")}
        runs = [read_facts(folder, **options) for folder in arguments.folders]
        if arguments.anonymous:
            runs = [replace(each, name=f"run {number}") for number, each in enumerate(runs, start=1)]
        write_atomically(out, render_page(runs))
    except (UserError, *TABLE_ERRORS) as error:
        return exit_codes.report_error(error)
    except OSError as error:
        return exit_codes.report_error(error, exit_codes.FAILED)
    print(printable(f"wrote {out} ({out.stat().st_size / 2**20:.1f} MiB)"))
    return exit_codes.DONE
