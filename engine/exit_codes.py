"""Exit codes of the commands and of a training run, and the line on standard error that goes with an error."""

from __future__ import annotations

import sys

from rlpheads.engine.terminal.text import printable

DONE = 0
FAILED = 1
"""It began and failed: a training, a run of a study, a conversion."""
DAMAGED_FILES = 1
"""`rlpheads verify` decoded every file, and some are damaged or unreadable."""
WRONG_SETTINGS = 2
"""Settings, arguments or a folder cannot be used as they are."""
REQUEUE = 75
"""Stopped by a signal, with everything saved: the same command goes on. The number is EX_TEMPFAIL of BSD's sysexits.h."""
INTERRUPTED = 130
"""Stopped from the keyboard with nothing saved for it: 128 + SIGINT, as shells have it. A training's is REQUEUE."""


def report_error(error: object, code: int = WRONG_SETTINGS) -> int:
    """Print `error: ...` on standard error, on one line, and return the exit code."""
    print(f"error: {printable(error)}", file=sys.stderr)
    return code
