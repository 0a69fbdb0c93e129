"""`rlpheads figures RUN`: a run's figures drawn again, in the width and format of a paper."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rlpheads.engine import exit_codes
from rlpheads.engine.terminal.text import printable

_WIDTH = re.compile(r"(\d+(?:\.\d+)?)(in|cm|mm|pt)?")
_INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Draw the figures of a run again from its folder: random-label accuracy by depth, by epoch, and as a heat map, with "
        "the caption of each as a text file."
    )
    add = parser.add_argument
    add("folder", metavar="RUN", type=Path, help="run folder")
    add(
        "--width",
        type=width_in_inches,
        help="such as 3.3in, 8.4cm or 238pt; default: as wide as the figure likes to be",
    )
    add("--format", dest="formats", nargs="+", choices=("png", "svg", "pdf"), help="default: all three")


def width_in_inches(text: str) -> float:
    """Return a width in inches.

    Raises:
        argparse.ArgumentTypeError: it is none, or not from 2 to 20 inches.
    """
    found = _WIDTH.fullmatch(text.strip())
    inches = 0.0 if found is None else float(found[1]) * _INCHES[found[2] or "in"]
    if not 2 <= inches <= 20:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: 2 to 20 inches, such as 3.3in, 8.4cm or 238pt")
    return inches


def run(arguments: argparse.Namespace) -> int:
    """Draw; return the exit code."""
    from rlpheads.engine.config.errors import UserError  # what follows imports torch
    from rlpheads.engine.tables.run_figures import draw_run_figures
    from rlpheads.engine.tables.run_tables import TABLE_ERRORS, open_run, run_config
    from rlpheads.memorization.figures.figure_file import FORMATS

    try:
        folder = open_run(arguments.folder).path
        written = draw_run_figures(folder, run_config(folder), arguments.formats or FORMATS, arguments.width)
    except (UserError, *TABLE_ERRORS) as error:
        return exit_codes.report_error(error)
    except OSError as error:
        return exit_codes.report_error(error, exit_codes.FAILED)
    if not written:
        print(printable(f"{arguments.folder}: no figure, for want of heads or of a finished epoch"))
    for path in written:
        print(printable(path))
    return exit_codes.DONE
