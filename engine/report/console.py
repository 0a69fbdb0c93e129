"""Where tables and lines are printed: as wide as the terminal, or wide enough for every table where there is none."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from rlpheads.engine.terminal.text import printable

WIDTH_WITHOUT_TERMINAL = 200
"""Columns of output that goes to a file or a pipe."""


class TextConsole(Console):
    """A console on which every string is text: brackets are no markup, `:x:` is no emoji, escapes are shown."""

    def __init__(self, **options: Any):
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

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
