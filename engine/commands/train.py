"""`rlpheads train --config FILE`: parse the settings, launch the ranks, and return the exit code of the ranks.

The settings are parsed before torch is imported, so that a mistake is answered at once. One rank trains in this process;
several are launched through torch's elastic API, as torchrun does, without torchrun's own lines.
"""

from __future__ import annotations

import argparse
import os

from rlpheads.engine import exit_codes, train
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.help import help_text
from rlpheads.engine.config.launcher_options import read_launcher_options
from rlpheads.engine.config.launcher_variables import check_one_process
from rlpheads.engine.distributed.cores import num_threads
from rlpheads.engine.terminal import standard_streams

TAKES_SETTINGS = True
"""Flags that are not declared here are the run's settings."""

_RANKS = {
    "nproc-per-node": ("N", "ranks on this node, or gpu: one for each; default: 1"),
    "max-restarts": (
        "N",
        "how often ranks that were killed or failed start again, from the last checkpoint; default: 0",
    ),
}
_NODES = {
    "nnodes": ("N", "number of nodes; default: 1"),
    "rdzv-endpoint": ("HOST:PORT", "the first node, where all meet"),
    "rdzv-backend": ("NAME", "how they meet; default: c10d"),
    "rdzv-id": ("ID", "name of the job, the same on every node; default: Slurm's job id"),
    "rdzv-conf": ("KEY=VALUE,...", "further settings of the backend"),
    "master-addr": ("HOST", "the first node, in place of --rdzv-endpoint, with --node-rank"),
    "master-port": ("PORT", "its port; default: 29500"),
    "node-rank": ("N", "which node this is, from 0"),
    "local-addr": ("HOST", "this node's address, where its host name does not tell"),
}
"""Options by name: what stands for the value, and the meaning."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the launcher's arguments; all else on the command line are settings."""
    parser.usage = "rlpheads train [--nproc-per-node N] [--config FILE ...] [--KEY VALUE ...]"
    parser.add_argument(
        "-h",
        "--help",
        dest="wants_help",
        action="store_true",
        help="print this and every key, or one section: --help data",
    )
    ranks = parser.add_argument_group("ranks", "one process for each GPU; torchrun's names")
    nodes = parser.add_argument_group("several nodes", "the same command on each, but for --node-rank")
    for group, options in ((ranks, _RANKS), (nodes, _NODES)):
        for name, (metavar, meaning) in options.items():
            group.add_argument(f"--{name}", metavar=metavar, help=meaning)
            if "-" in name:
                group.add_argument(f"--{name.replace('-', '_')}", help=argparse.SUPPRESS)  # torchrun takes both
    nodes.add_argument("--standalone", action="store_true", help="one node alone, which is the default")


def run(arguments: argparse.Namespace) -> int:
    """Train; return the exit code of the ranks, 2 for settings that cannot be used."""
    if arguments.wants_help:
        return _print_help(arguments)
    standard_streams.keep_running()
    settings: list[str] = arguments.settings
    try:
        options = read_launcher_options(vars(arguments))
        if options.one_node:
            check_one_process()
        if options.one_process:
            _share_cores(1)
            return train.main(settings)
        train.read_settings(settings, lambda _: None)  # the first rank says what there is to say
        from rlpheads.engine.distributed.launcher import launch_ranks, num_local_ranks  # import torch

        _share_cores(num_local_ranks(options))
        return launch_ranks(options, train.__file__, settings)
    except ConfigError as error:
        return exit_codes.report_error(error)
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED


def _print_help(arguments: argparse.Namespace) -> int:
    section = next((word for word in arguments.settings if not word.startswith("-")), None)
    try:
        text = help_text(section)
    except ConfigError as error:
        return exit_codes.report_error(error)
    if section is None:
        arguments.parser.print_help()
        print()
    print(text, end="")
    return exit_codes.DONE


def _share_cores(num_ranks: int) -> None:
    """Give each rank its share of the cores that this job may use, unless the user has said how many threads it gets."""
    if "OMP_NUM_THREADS" not in os.environ and (threads := num_threads(num_ranks)) is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
