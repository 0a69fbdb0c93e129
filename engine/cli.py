"""The console script `rlpheads`: what is done around a training run; the run itself is `torchrun engine/train.py`.

A command is a function from its parsed arguments to an exit code, with its arguments declared beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code.

    Without a command the help is printed and the code is 2; so it is, from argparse, for one that is not understood.
    """
    parser = _build_parser()
    arguments = parser.parse_args(argv)
    if arguments.run is None:
        parser.print_help()
        return 2
    return arguments.run(arguments)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlpheads",
        description="Tools around a training run; the run itself is: torchrun engine/train.py --config FILE",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rlpheads {version('rlpheads')}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    env = commands.add_parser("env", help="print versions, devices and the source commit", allow_abbrev=False)
    env.add_argument("--json", action="store_true", help="as JSON, as environment.json of a run folder has it")
    env.set_defaults(run=_run_env)
    canaries = commands.add_parser("canaries", help="say which measure finds the planted samples", allow_abbrev=False)
    canaries.add_argument("folder", metavar="RUN", type=Path, help="run folder, with canaries.parquet and ledgers")
    canaries.add_argument("--phase", choices=("running", "clean"), default="running", help="which ledgers are read")
    canaries.add_argument("--json", action="store_true", help="as JSON")
    canaries.set_defaults(run=_run_canaries)
    audit = commands.add_parser("audit", help="refit probes to the features of a checkpoint", allow_abbrev=False)
    _add_audit_arguments(audit)
    audit.set_defaults(run=_run_audit)
    convert = commands.add_parser("convert", help="make the store that the ffcv loader reads", allow_abbrev=False)
    _add_convert_arguments(convert)
    convert.set_defaults(run=_run_convert)
    verify = commands.add_parser(
        "verify", help="find the images that cannot be read, for all loaders", allow_abbrev=False
    )
    _add_verify_arguments(verify)
    verify.set_defaults(run=_run_verify)
    study = commands.add_parser("study", help="train, audit and compare the runs of a study", allow_abbrev=False)
    _add_study_arguments(study)
    study.set_defaults(run=_run_study)
    return parser


def _add_convert_arguments(convert: argparse.ArgumentParser) -> None:
    convert.description = (
        "Write a dataset's images into a store, STORE/train.beton and STORE/val.beton, in FFCV's format and canonical order, "
        "for --data.root STORE --data.loader ffcv. Broken off, the same command goes on where it stopped."
    )
    add = convert.add_argument
    add("--data.root", dest="root", metavar="FOLDER", help="folder of the images, as of a run")
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
    add("--data.on_error", dest="on_error", choices=("raise", "skip"), default="raise", help="as of a run")
    add("--workers", type=int, default=os.cpu_count() or 1, help="encoding processes; default: one for each core")
    add(
        "--page-size",
        type=int,
        default=8 << 20,
        help="bytes of FFCV's pages; an image lies within one; default: 8388608",
    )


def _add_verify_arguments(verify: argparse.ArgumentParser) -> None:
    verify.description = (
        "Decode every file of a tree once, strictly, and write down what is not whole: a run then refuses to start or leaves "
        "it out (data.on_error), whatever library decodes. Exit code 0: all is fine; 1: something is not."
    )
    verify.add_argument(
        "--data.root", dest="root", metavar="TREE", type=Path, required=True, help="folder of the images"
    )
    verify.add_argument(
        "--out", type=Path, help="folder of what is found; default: TREE/.rlpheads (else data.verified)"
    )
    verify.add_argument("--workers", type=int, help="decoding processes; default: one for each core")
    verify.add_argument(
        "--again", action="store_true", help="begin anew; default: go on with what is not looked at yet"
    )


def _add_audit_arguments(audit: argparse.ArgumentParser) -> None:
    audit.description = (
        "Refit probes to frozen features of a run. Label excess: does a tap hold the run's own random labels? Membership "
        "excess: are training images told apart more easily than held-out ones? Writes RUN/audit/*.json."
    )
    audit.add_argument("folder", metavar="RUN", type=Path, help="run folder")
    audit.add_argument("--epoch", type=int, help="the checkpoint of the end of this epoch; default: the newest one")
    audit.add_argument(
        "--taps",
        help="places such as 0,-1,3.attn (in block 3, after its attention); all: every block; inside: after attention "
        "and after MLP of every block; default: the run's own taps. A list that begins with - needs =: --taps=-1,0",
    )
    audit.add_argument("--probe", default="least_squares", help="least_squares (default), logistic or two_layer")
    audit.add_argument("--hidden", type=int, help="hidden units of two_layer")
    audit.add_argument("--draws", type=int, default=8, help="fresh draws of the labels, at least 4; default: 8")
    audit.add_argument("--level", type=float, default=0.95, help="coverage of the intervals; default: 0.95")
    audit.add_argument("--root", help="folder of the images, if they were moved since the run")
    audit.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if there is one"
    )
    audit.add_argument("--json", action="store_true", help="print what is written, in place of the table")


def _add_study_arguments(study: argparse.ArgumentParser) -> None:
    study.description = (
        "Train every run of a study (arms x grid x seeds) that is not finished, audit it, and report means with intervals "
        "across seeds. The same command goes on where it was stopped."
    )
    study.add_argument("file", metavar="STUDY", type=Path, help="YAML or TOML file, such as those in studies/")
    study.add_argument("--out", type=Path, help="folder of the runs and the results; default: runs/STUDY")
    study.add_argument("--nproc-per-node", type=int, default=1, help="processes of each run; default: 1")
    study.add_argument("--json", action="store_true", help="print what is written, in place of the table")


def _run_study(arguments: argparse.Namespace) -> int:
    from rlpheads.engine.commands.study import run_study  # imports torch, which the help can do without

    return run_study(arguments.file, arguments.out, arguments.nproc_per_node, as_json=arguments.json)


def _run_env(arguments: argparse.Namespace) -> int:
    from rlpheads.engine.runs.environment import collect_environment  # imports torch, which the help can do without

    environment = collect_environment()
    if arguments.json:
        print(json.dumps(environment, indent=2))
    else:
        Console().print(_environment_table(environment))
    return 0


def _run_canaries(arguments: argparse.Namespace) -> int:
    from rlpheads.engine.commands.canaries import run_canaries  # imports torch, which the help can do without

    return run_canaries(arguments.folder, arguments.phase, as_json=arguments.json)


def _run_audit(arguments: argparse.Namespace) -> int:
    from rlpheads.engine.commands.audit import AuditOptions, run_audit  # imports torch, which the help can do without

    names = ("taps", "probe", "hidden", "draws", "level", "device")
    options = AuditOptions(**{name: getattr(arguments, name) for name in names})
    return run_audit(arguments.folder, arguments.epoch, arguments.root, options, as_json=arguments.json)


def _run_convert(arguments: argparse.Namespace) -> int:
    from rlpheads.engine.commands.convert import (
        ConvertOptions,
        run_convert,
    )  # imports torch, which the help can do without
    from rlpheads.loaders.store.image_encoding import Encoding

    encoding = ("mode", "long_side", "short_side", "quality", "smart_bytes", "proportion")
    others = ("dataset", "root", "val_fraction", "seed", "out", "on_error", "workers", "page_size")
    try:
        options = ConvertOptions(
            encoding=Encoding(**{name: getattr(arguments, name) for name in encoding}),
            **{name: getattr(arguments, name) for name in others},
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run_convert(options)


def _run_verify(arguments: argparse.Namespace) -> int:
    from rlpheads.engine.commands.verify import (
        VerifyOptions,
        run_verify,
    )  # imports torch, which the help can do without

    options = {name: getattr(arguments, name) for name in ("root", "out", "workers", "again")}
    return run_verify(VerifyOptions(**options))


def _environment_table(environment: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for section, content in environment.items():
        table.add_section()
        for name, value in _rows(section, content):
            table.add_row(Text(name), Text(value))
    return table


def _rows(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield a (dotted name, value) row for every leaf of nested mappings and lists of mappings."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _rows(f"{name}.{key}", below)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for position, item in enumerate(value):
            yield from _rows(f"{name}[{position}]", item)
    elif isinstance(value, list):
        yield name, " ".join(map(str, value))
    else:
        yield name, "-" if value is None else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
