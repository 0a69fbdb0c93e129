"""`rlpheads convert`: makes the store that the ffcv loader reads."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rlpheads.engine import exit_codes
from rlpheads.engine.report.console import open_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Write a dataset's images into a store, STORE/train.beton and STORE/val.beton, in FFCV's format and canonical order, "
        "for --data.root STORE --data.loader ffcv. After an interruption the same command goes on where it stopped."
    )
    add = parser.add_argument
    add("--data.root", dest="root", metavar="FOLDER", type=Path, help="folder of the images, as of a run")
    add("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    add("--data.dataset", dest="dataset", default="imagefolder", help="as of a run; default: imagefolder")
    add("--data.val_fraction", dest="val_fraction", type=float, help="as of a run, if the images have no val folder")
    add("--seed", type=int, default=0, help="as of a run: with val_fraction it decides what is held out; default: 0")
    add("--mode", default="jpg", help="jpg (default), raw (pixels: larger, faster), smart or proportion (some of each)")
    add("--long", type=int, dest="long_side", metavar="PIXELS", help="make images smaller whose long side is longer")
    add("--short", type=int, dest="short_side", metavar="PIXELS", help="make images smaller whose short side is longer")
    add("--quality", type=int, help="JPEG quality; default: keep JPEG files that stay as large as they are, others 90")
    add("--smart-bytes", type=int, default=196_608, help="smart: JPEG where the pixels take more; default: 196608")
    add("--proportion", type=float, default=0.5, help="proportion: this fraction as JPEG; default: 0.5")
    add("--data.exif", dest="exif", choices=("ignore", "apply"), default="ignore", help="as of a run; default: ignore")
    add("--data.on_error", dest="on_error", choices=("raise", "skip"), default="raise", help="as of a run")
    add("--workers", type=int, default=os.cpu_count() or 1, help="encoding processes; default: one for each core")
    page_help = "bytes of FFCV's pages; an image lies within one; default: 8388608"
    add("--page-size", type=int, default=8 << 20, help=page_help)


def run(arguments: argparse.Namespace) -> int:
    """Write the store; return the exit code."""
    from rlpheads.engine.commands.convert_store import ConvertOptions, convert  # imports torch
    from rlpheads.loaders.contract.errors import DatasetError, ImageReadError, LoaderError
    from rlpheads.loaders.store.image_encoding import Encoding

    encoding = ("mode", "long_side", "short_side", "quality", "smart_bytes", "proportion")
    others = ("dataset", "root", "val_fraction", "seed", "out", "exif", "on_error", "workers", "page_size")
    try:
        options = ConvertOptions(
            encoding=Encoding(**{name: getattr(arguments, name) for name in encoding}),
            **{name: getattr(arguments, name) for name in others},
        )
    except ValueError as error:
        return exit_codes.report_error(error)
    try:
        convert(options, open_console())
    except DatasetError as error:
        return exit_codes.report_error(error)
    except ImageReadError as error:
        remedy = (
            "Start again with --data.on_error skip to go on without it, its index and the reason noted in the store"
        )
        return exit_codes.report_error(f"{error}. {remedy}", exit_codes.FAILED)
    except (LoaderError, OSError) as error:
        remedy = "What was written stays: the same command goes on from there"
        return exit_codes.report_error(f"{error}. {remedy}", exit_codes.FAILED)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return exit_codes.INTERRUPTED
    return exit_codes.DONE
