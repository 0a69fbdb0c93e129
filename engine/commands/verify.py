"""`rlpheads verify`: finds the images of a tree that cannot be read, for all loaders."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rlpheads.engine import exit_codes
from rlpheads.engine.report.console import open_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Decode every file of a tree once, strictly, and record the damaged ones: a run then refuses to start or leaves them "
        "out (data.on_error), whatever library decodes. Exit code 0: all is fine; 1: something is not."
    )
    add = parser.add_argument
    add("--data.root", dest="root", metavar="TREE", type=Path, required=True, help="folder of the images")
    add(
        "--out",
        type=Path,
        help="folder of the results; default: TREE/.rlpheads (give another to runs as data.verified)",
    )
    add("--workers", type=int, help="decoding processes; default: one for each core")
    add("--again", action="store_true", help="decode all files again; default: those that were not decoded yet")


def run(arguments: argparse.Namespace) -> int:
    """Verify a tree, write and print what was found; return the exit code."""
    from rlpheads.engine.commands.verify_tree import VerifyOptions, verify_tree  # imports torch
    from rlpheads.loaders.contract.errors import DatasetError

    options = VerifyOptions(arguments.root, arguments.out, arguments.workers, arguments.again)
    try:
        all_fine = verify_tree(options, open_console())
    except KeyboardInterrupt:
        again = ", without --again," if options.again else ""
        print(f"interrupted; the same command{again} goes on where it was", file=sys.stderr)
        return exit_codes.INTERRUPTED
    except DatasetError as error:
        return exit_codes.report_error(error)
    except OSError as error:
        return exit_codes.report_error(
            f"{error.filename or options.folder}: {error.strerror}; name a folder with --out"
        )
    return exit_codes.DONE if all_fine else exit_codes.DAMAGED_FILES
