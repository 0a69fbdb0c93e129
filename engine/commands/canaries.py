"""`rlpheads canaries RUN`: which measure finds the samples that were planted in a run, as a table or as JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlpheads.engine import exit_codes
from rlpheads.engine.report.console import open_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("folder", metavar="RUN", type=Path, help="run folder, with canaries.parquet and ledgers")
    parser.add_argument("--phase", choices=("running", "clean"), default="running", help="which ledgers are read")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the report of a run folder; return the exit code."""
    from rlpheads.engine.report.canaries_report import collect_report, print_report  # imports torch
    from rlpheads.memorization.records.canary_file import CanaryError
    from rlpheads.memorization.records.ledger_file import LedgerError

    try:
        report = collect_report(arguments.folder, arguments.phase)
    except (FileNotFoundError, CanaryError, LedgerError) as error:
        return exit_codes.report_error(error)
    if arguments.json:
        print(report.to_json())
    else:
        print_report(report, open_console())
    return exit_codes.DONE
