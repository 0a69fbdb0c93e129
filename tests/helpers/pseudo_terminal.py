"""A process in a pseudo-terminal, and what its terminal shows: enough of one for rich's live display."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\r|\n|\x07")


@dataclass
class Screen:
    """Lines of a terminal of `width` columns that scrolls without end.

    Attributes:
        unknown: control sequences and characters that a terminal would act upon and that are not known here.
        num_wraps: lines that were too long, and went on in the next.
    """

    width: int
    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0
    unknown: list[str] = field(default_factory=list)
    num_wraps: int = 0

    def feed(self, text: str) -> None:
        """Show text."""
        place = 0
        for control in _CONTROL.finditer(text):
            self._write(text[place : control.start()])
            self._obey(control)
            place = control.end()
        self._write(text[place:])

    @property
    def text(self) -> str:
        """What is seen, without spaces at the ends of lines."""
        return "\n".join(line.rstrip() for line in self.lines).strip("\n")

    def _write(self, text: str) -> None:
        for character in text:
            if not character.isprintable():
                self.unknown.append(character)
                continue
            if self.column == self.width:
                self.num_wraps += 1
                self._go_down()
                self.column = 0
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1

    def _go_down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def _obey(self, control: re.Match[str]) -> None:
        count, letter = control[1], control[2]
        if control[0] == "\r":
            self.column = 0
        elif control[0] == "\n":
            self._go_down()
        elif letter == "A":
            self.row = max(0, self.row - int(count or 1))
        elif letter == "K" and count == "2":
            self.lines[self.row] = ""
        elif letter not in ("m", "h", "l"):
            self.unknown.append(control[0])


@dataclass(frozen=True)
class Ended:
    """A process that ended: its terminal, its exit code, and the seconds of CPU that it and its children took."""

    screen: Screen
    code: int


def run_in_terminal(
    argv: Sequence[str],
    *,
    width: int = 80,
    interrupt_when: Callable[[str], bool] = lambda _: False,
    seconds: float = 240,
) -> Ended:
    """Run a command in a terminal; Ctrl-C is pressed once, when what was written so far says so."""
    process, terminal = pty.fork()
    if process == 0:
        surroundings = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        os.execvpe(argv[0], argv, surroundings | {"TERM": "xterm-256color"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    written, pressed, end = b"", False, time.monotonic() + seconds
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            written += os.read(terminal, 65536)
        except OSError:  # its last process is gone
            break
        if not pressed and interrupt_when(written.decode(errors="replace")):
            os.write(terminal, b"\x03")
            pressed = True
    else:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    screen = Screen(width)
    screen.feed(written.decode(errors="replace"))
    return Ended(screen, os.waitstatus_to_exitcode(status))
