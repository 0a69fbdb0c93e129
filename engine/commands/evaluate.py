"""`rlpheads evaluate RUN|FILE`: loss, accuracies and calibration error of saved weights, and every prediction."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlpheads.engine import exit_codes
from rlpheads.engine.report.console import open_console

TAKES_SETTINGS = True
"""Flags that are not declared here are settings."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "rlpheads evaluate RUN|FILE [--split heldout|train] [--out PREDICTIONS.parquet] [--KEY VALUE ...]"
    parser.description = (
        "Evaluate the weights of a run, or of a file that rlpheads export or timm wrote: loss, top-1, top-5 and expected "
        "calibration error, each image once, without augmentation. Settings such as --data.root FOLDER go over those of the "
        "run, or beside those that config.json beside the file gives."
    )
    add = parser.add_argument
    add("-h", "--help", action="help", help="print this")
    add("weights", metavar="RUN|FILE", type=Path, help="run folder, one of its checkpoints, or file of weights")
    add("--split", choices=("heldout", "train"), default="heldout", help="which images; default: heldout")
    add("--epoch", type=int, help="of a run: the checkpoint of the end of this epoch; default: the newest one")
    add("--step", type=int, help="of a run: the checkpoint of this step")
    add("--ema", action="store_true", help="of a run: the moving average of its weights")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if there is one")
    add("--out", type=Path, help="write every prediction to this Parquet file")
    add("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print; return the exit code."""
    from rlpheads.engine.config.errors import UserError  # what follows imports torch
    from rlpheads.engine.offline.evaluate_weights import EvaluationOptions, evaluate_weights, figures_json
    from rlpheads.loaders.contract.errors import DatasetError, ImageReadError, LoaderError

    names = ("split", "epoch", "step", "ema", "device", "settings")
    options = EvaluationOptions(**{name: getattr(arguments, name) for name in names})
    try:
        found = evaluate_weights(arguments.weights, options)
        if arguments.out is not None:
            found.write_predictions(arguments.out)
    except (UserError, DatasetError) as error:
        return exit_codes.report_error(error)
    except (ImageReadError, LoaderError, OSError) as error:
        return exit_codes.report_error(error, exit_codes.FAILED)
    if arguments.json:
        print(figures_json(found))
        return exit_codes.DONE
    skipped = f" ({found.num_skipped} skipped)" if found.num_skipped else ""
    console = open_console()
    images = f"{found.num_samples:,} images of {found.split}, {found.image_size} x {found.image_size}{skipped}"
    console.print(f"{found.weights}, {images}:", soft_wrap=True)
    shares = "  ".join(f"{name} {100 * value:.2f}%" for name, value in _shares(found.top1, found.top5, found.ece))
    console.print(f"loss {found.loss:.4f}  {shares}")
    if arguments.out is not None:
        console.print(f"written: {arguments.out}", soft_wrap=True)
    return exit_codes.DONE


def _shares(top1: float, top5: float, ece: float) -> list[tuple[str, float]]:
    return [("top-1", top1), ("top-5", top5), ("calibration error", ece)]
