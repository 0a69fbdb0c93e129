"""Where tables and lines are printed: as wide as the terminal, or wide enough for every table where there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rlpheads.engine.terminal.text import printable

WIDTH_WITHOUT_TERMINAL = 200
"""Columns of output that goes to a file or a pipe."""


def fitting_tables(table: Table, width: int) -> Iterator[Table]:
    """Yield a table, or several with its first column each, so that no word in them is wider than its column.

    One further column is the least, however narrow the console.
    """
    first, *others = table.columns
    groups: list[list[Column]] = [[first]]
    for column in others:
        if len(groups[-1]) > 1 and sum(_least_width(each) for each in (*groups[-1], column)) >= width:
            groups.append([first])
        groups[-1].append(column)
    for number, group in enumerate(groups):
        part = copy(table)
        part.title = table.title if number == 0 else None
        part.caption = table.caption if number == len(groups) - 1 else None
        part.columns = [copy(column) for column in group]
        for column, wide in zip(part.columns, _shared_widths(group, width - 1), strict=True):
            column.width = wide
        yield part


_AROUND = 3
"""Columns of a cell's padding and a border."""


def _least_width(column: Column) -> int:
    """Columns that a table's column needs so that its words stay whole."""
    lines = [[line] if column.no_wrap else line.split() for line in _lines_of(column)]
    return _AROUND + max((cell_len(word) for words in lines for word in words), default=0)


def _lines_of(column: Column) -> list[str]:
    cells = (printable(cell, keep="\n\t") for cell in (column.header, *column.cells))
    return [line for cell in cells for line in cell.splitlines()]


def _shared_widths(columns: Sequence[Column], room: int) -> list[int | None]:
    """Return the width of each column without what is around it: its longest word, and its share of the rest.

    None where there is no room for the longest words.
    """
    least = [_least_width(column) for column in columns]
    wanted = [_AROUND + max(map(cell_len, _lines_of(column)), default=0) for column in columns]
    more = [wide - narrow for narrow, wide in zip(least, wanted, strict=True)]
    if sum(least) > room:
        return [None for _ in columns]
    share = min(1.0, max(0, room - sum(least)) / max(1, sum(more)))
    return [narrow + int(extra * share) - _AROUND for narrow, extra in zip(least, more, strict=True)]


class TextConsole(Console):
    """A console on which every string is text: brackets are no markup, `:x:` is no emoji, escapes are shown."""

    def __init__(self, **options: Any):
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; a table that is wider than the console comes in several, in which nothing is cut off."""
        if len(objects) == 1 and isinstance(objects[0], Table):
            for part in fitting_tables(objects[0], self.width):
                super().print(part, **options)
        else:
            super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as it is printed, in lines and in the cells and titles of tables."""
        return super().render_str(printable(text, keep="\n\t"), **options)


def open_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console on standard output; the variable COLUMNS overrides its width.

    Args:
        stderr: print on standard error instead.
        quiet: print nothing.
    """
    stream = sys.stderr if stderr else sys.stdout
    is_terminal = stream is not None and stream.isatty()
    width = None if is_terminal or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL  # None: rich looks at both
    return TextConsole(stderr=stderr, quiet=quiet, width=width)
