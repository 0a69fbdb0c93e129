"""`rlpheads export RUN OUT`: a run's weights as a safetensors file of timm's names, with the Hub's config.json beside it."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlpheads.engine import exit_codes
from rlpheads.engine.terminal.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Write the weights of a run for timm, plain PyTorch and the Hub, without the images. OUT is a file NAME.safetensors "
        "or a folder, which gets model.safetensors; config.json, with what timm needs to build the network and to prepare "
        "images, is written beside it."
    )
    add = parser.add_argument
    add("folder", metavar="RUN", type=Path, help="run folder")
    add("out", metavar="OUT", type=Path, help="file NAME.safetensors, or a folder")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--epoch", type=int, help="the checkpoint of the end of this epoch; default: the newest one")
    which.add_argument("--step", type=int, help="the checkpoint of this step")
    add(
        "--ema",
        action="store_true",
        help="the moving average of the weights (model.ema_decay) in place of the live ones",
    )
    add("--heads", action="store_true", help="heads and their random labels as well, in heads.safetensors beside it")
    add("--root", type=Path, help="folder of the images, if they were moved since the run: for class names and labels")
    add(
        "--plugins",
        action="store_true",
        help="import the plug-ins that the run names, which are code of whoever made it",
    )
    add("--overwrite", action="store_true", help="replace files of these names")


def run(arguments: argparse.Namespace) -> int:
    """Export, and say what was written and how to load it; return the exit code."""
    from rlpheads.engine.config.errors import UserError
    from rlpheads.engine.offline.export_weights import ExportOptions, export_run  # imports torch

    names = ("epoch", "step", "ema", "heads", "root", "plugins", "overwrite")
    options = ExportOptions(**{name: getattr(arguments, name) for name in names})
    try:
        exported = export_run(arguments.folder, arguments.out, options)
    except UserError as error:
        return exit_codes.report_error(error)
    except OSError as error:
        return exit_codes.report_error(error, exit_codes.FAILED)
    for line in exported.describe():
        print(printable(line))
    return exit_codes.DONE
