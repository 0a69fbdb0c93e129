"""`rlpheads truth RUN [RUN ...]`: trains a run's network on many random subsets, and judges every score of the run by them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rlpheads.engine import exit_codes
from rlpheads.engine.report.console import open_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "The ground truth of memorisation (Feldman and Zhang, 2020): train the run's network again on random subsets of its "
        "images, many at once, and ask each about all images. An image is memorised as far as it is got right more often by "
        "networks that saw it. Every score of the run's ledgers is compared with that; of several runs on the same images, the "
        "trends from the smallest network to the largest. Goes on where it was stopped; writes RUN/truth and RUN/truth.json."
    )
    add = parser.add_argument
    add(
        "folders",
        metavar="RUN",
        type=Path,
        nargs="+",
        help="run folder, with a ledger of every epoch (--ledger.every 1)",
    )
    add("--networks", type=int, default=500, help="networks of each run, those counted that are there; default: 500")
    add("--fraction", type=float, default=0.7, help="part of the images that each is trained on; default: 0.7")
    add("--at-once", type=int, default=32, help="networks that are trained together; default: 32")
    add(
        "--phase",
        choices=("running", "clean"),
        default="running",
        help="ledgers whose scores are judged; default: running",
    )
    add("--root", type=Path, help="folder of the images, if they were moved since the run")
    add(
        "--plugins",
        action="store_true",
        help="import the plug-ins that the runs name, which are code of whoever made them",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if there is one")
    add("--json", action="store_true", help="print what is written, in place of the tables")


def run(arguments: argparse.Namespace) -> int:
    """Train what is missing, write what was found and print it; return the exit code. 75: stopped, the same command goes on."""
    for name in ("networks", "at_once"):
        if getattr(arguments, name) < 1:
            return exit_codes.report_error(
                f"--{name.replace('_', '-')}: got {getattr(arguments, name)}; allowed: a number at least 1"
            )
    if not 0 < arguments.fraction < 1:
        return exit_codes.report_error(f"--fraction: got {arguments.fraction}; allowed: a number above 0 and below 1")
    from rlpheads.engine.config.errors import ConfigError  # what follows imports torch
    from rlpheads.engine.retraining.stacked_networks import RetrainingError
    from rlpheads.engine.runs.checkpoint import CheckpointError
    from rlpheads.engine.runs.opened_run import RunError
    from rlpheads.loaders.contract.errors import ImageReadError, LoaderError
    from rlpheads.memorization.records.ledger_file import LedgerError

    try:
        return _run(arguments)
    except (ConfigError, RunError, CheckpointError, RetrainingError, LedgerError) as error:
        return exit_codes.report_error(error)
    except (ImageReadError, LoaderError, OSError) as error:
        return exit_codes.report_error(error, exit_codes.FAILED)
    except KeyboardInterrupt:
        print("stopped: interrupted; the same command goes on with the networks that are missing", file=sys.stderr)
        return exit_codes.REQUEUE


def _run(arguments: argparse.Namespace) -> int:
    from rlpheads.engine.distributed.launch import choose_device
    from rlpheads.engine.retraining.progress import training_progress
    from rlpheads.engine.retraining.run_truth import TRUTH_FILE, RetrainedRun
    from rlpheads.engine.retraining.truth_report import agreement_table, trend_table, truth_lines, width_trends
    from rlpheads.engine.runs.opened_run import read_run

    console = open_console(stderr=arguments.json)
    device = choose_device(arguments.device, 0)
    opened = [read_run(folder, root=arguments.root, plugins=arguments.plugins) for folder in arguments.folders]
    found = []
    for saved in opened:
        retrained = RetrainedRun(saved, arguments.fraction, device)
        missing = retrained.num_missing(arguments.networks)
        with training_progress(console, retrained.folder.name, missing * saved.config.epochs) as advance:
            retrained.train_missing(arguments.networks, arguments.at_once, advance)
        each = retrained.judge(arguments.phase)
        saved.folder.write_json(TRUTH_FILE, each.content())
        found.append(each)
    if arguments.json:
        print(json.dumps([each.content() for each in found], indent=2))
        return exit_codes.DONE
    for each in found:
        for line in truth_lines(each):
            console.print(line, soft_wrap=True)
        console.print(agreement_table(each))
    if len(found) > 1 and len({len(each.truth_N) for each in found}) == 1:
        console.print(trend_table(found, width_trends(found)))
    return exit_codes.DONE
