"""`rlpheads env`: versions, devices and the source commit, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from rlpheads.engine import exit_codes
from rlpheads.engine.report.console import open_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="as JSON, as environment.json of a run folder has it")


def run(arguments: argparse.Namespace) -> int:
    """Print the environment; return the exit code."""
    from rlpheads.engine.runs.environment import collect_environment  # imports torch

    environment = collect_environment()
    if arguments.json:
        print(json.dumps(environment, indent=2))
    else:
        open_console().print(_environment_table(environment))
    return exit_codes.DONE


def _environment_table(environment: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for section, content in environment.items():
        table.add_section()
        for name, value in _flatten(section, content):
            table.add_row(Text(name), Text(value))
    return table


def _flatten(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, value) of every leaf of nested mappings and lists of mappings."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _flatten(f"{name}.{key}", below)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for position, item in enumerate(value):
            yield from _flatten(f"{name}[{position}]", item)
    elif isinstance(value, list):
        yield name, " ".join(map(str, value))
    else:
        yield name, "-" if value is None else str(value)
