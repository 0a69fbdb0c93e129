"""Standard output and error that never end a run: an encoding without "λ", a reader that went away, a full disk.

A run goes on in silence when nobody reads it any more. A command ends as other programs do: by SIGPIPE.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

from rlpheads.engine.terminal.text import printable

OUTPUT_LOST = 74
"""Exit code of a command whose output cannot be written, to a full disk for one: EX_IOERR of BSD's sysexits.h."""

_IN_ASCII = dict.fromkeys("–—−━", "-") | {
    "λ": "lambda",
    "μ": "mu",
    "±": "+-",
    "×": "x",
    "²": "^2",
    "≤": "<=",
    "…": "...",
}
_ERRORS = "rlpheads.ascii"


class OutputFailedError(SystemExit):
    """Standard output or error of a command cannot be written; no handler of other errors should take it for its own."""

    def __init__(self, error: OSError):
        super().__init__(OUTPUT_LOST)
        self.error = error


def keep_running() -> None:
    """Let no print of this process fail: what cannot be written is dropped, without a word."""
    _protect(fails=False)


def run_command(command: Callable[[], int]) -> int:
    """Return a command's exit code, or end by SIGPIPE when the reader of its output goes away.

    Any other output that cannot be written ends it with `OUTPUT_LOST` and a line on standard error.
    """
    writers = _protect(fails=True)
    try:
        code = command()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OutputFailedError:
        code = OUTPUT_LOST
    failure = next((writer.failure for writer in writers if writer.failure is not None), None)
    if failure is None:
        return code
    if failure.errno == errno.EPIPE:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    print(f"error: the output cannot be written: {printable(failure.strerror)}", file=sys.stderr)
    return OUTPUT_LOST


def _protect(*, fails: bool) -> list[_Writer]:
    """Replace both streams by ones that can write every character; return what they write through."""
    codecs.register_error(_ERRORS, _spell_in_ascii)
    writers = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started the process: `>&-`
            nowhere = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, _open_text(_Writer(nowhere, fails=False), "utf-8"))
        elif _is_of_the_process(stream):
            stream.flush()
            writers.append(_Writer(stream.fileno(), fails=fails))
            setattr(sys, name, _open_text(writers[-1], stream.encoding))
    return writers


def _is_of_the_process(stream: Any) -> bool:
    """Whether a stream is the interpreter's own, not what a notebook or a test has put in its place."""
    if not isinstance(stream, io.TextIOWrapper):
        return False
    file = getattr(stream.buffer, "raw", stream.buffer)  # with python -u there is no buffer
    return isinstance(file, io.FileIO) and file.fileno() in (1, 2)


def _open_text(writer: _Writer, encoding: str) -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(writer), encoding, _ERRORS, line_buffering=True)


def _spell_in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for characters that an encoding lacks: a likeness, or an escape. A codecs error handler."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(character) or _escape(character) for character in characters), error.end


def _escape(character: str) -> str:
    return printable(character).encode("ascii", "backslashreplace").decode("ascii")


class _Writer(io.FileIO):
    """Writes to a descriptor; the first failure is kept, and what comes behind it is dropped.

    Attributes:
        failure: the first error, if there was one.
    """

    def __init__(self, descriptor: int, *, fails: bool):
        super().__init__(descriptor, "w", closefd=False)
        self.failure: OSError | None = None
        self._fails = fails

    def write(self, data: Any, /) -> int:
        """Write bytes and return how many were written or dropped.

        Raises:
            OutputFailedError: the first time that they cannot be written, where a failure is to end the program.
        """
        if self.failure is not None:
            return len(data)
        try:
            while (
                written := super().write(data)
            ) is None:  # a descriptor that does not block, shared with another program
                select.select([], [self.fileno()], [])
        except OSError as error:
            self.failure = error
            if self._fails:
                raise OutputFailedError(error) from None
            return len(data)
        return written
