"""Where tables and lines are printed: as wide as the terminal, or wide enough for every table where there is none."""

from __future__ import annotations

import os
import sys

from rich.console import Console

WIDTH_WITHOUT_TERMINAL = 200
"""Columns of output that goes to a file or a pipe."""


def open_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console on standard output; the variable COLUMNS overrides its width.

    Args:
        stderr: print on standard error instead.
        quiet: print nothing.
    """
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if is_terminal or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL  # None: rich looks at both
    return Console(stderr=stderr, quiet=quiet, width=width, highlight=False)
