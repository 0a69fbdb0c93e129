"""The console script `rlpheads`: a registry of the commands that train, and that go before and after a training run.

A command is a file of `engine/commands/`: `add_arguments(parser)` declares its arguments and `run(arguments)` returns its exit
code. One that has TAKES_SETTINGS gets what it did not declare as `arguments.settings`, and prints its own help. Only the file
of the command that was called is imported, and that imports torch only when it runs: help answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import rlpheads
from rlpheads.engine import exit_codes
from rlpheads.engine.config.errors import ConfigError, nearest, show_value
from rlpheads.engine.config.paths import expand_path
from rlpheads.engine.distributed import host_memory
from rlpheads.engine.terminal import standard_streams

COMMANDS = {
    "train": "train, with random-label prediction heads",
    "env": "print versions, devices and the source commit",
    "evaluate": "measure saved weights on images: loss, accuracy, calibration",
    "export": "write a run's weights as safetensors, for timm and the Hub",
    "report": "write one HTML page on runs",
    "figures": "draw a run's figures again, for a paper",
    "samples": "list the images that a measure ranks first",
    "canaries": "say which measure finds the planted samples",
    "audit": "refit probes to the features of a checkpoint",
    "truth": "retrain a run on many subsets, and judge its scores by that",
    "convert": "make the store that the ffcv loader reads",
    "verify": "find the images that cannot be read, for all loaders",
    "study": "train, audit and compare the runs of a study",
}
"""Every command, which is the module `rlpheads.engine.commands.NAME`, and its line in the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code.

    Without a command the help is printed and the code is 2, as it is for one that is not understood.
    """
    if argv is None:
        host_memory.keep_freed_memory()
        return standard_streams.run_command(lambda: _run(sys.argv[1:]))
    return _run(list(argv))


def _run(words: list[str]) -> int:
    parser = _build_parser(next((word for word in words if word in COMMANDS), None))
    arguments, settings = parser.parse_known_args(words)
    if settings and not arguments.takes_settings:
        arguments.parser.refuse(settings)
    arguments.settings = settings
    if arguments.run is None:
        parser.print_help()
        return exit_codes.WRONG_SETTINGS
    try:
        _expand_paths(arguments)
    except ConfigError as error:
        return exit_codes.report_error(error)
    try:
        return arguments.run(arguments)
    except (
        KeyboardInterrupt
    ):  # of a command that keeps nothing of what it has done so far; files are written in one move
        print("stopped: interrupted; the same command begins again", file=sys.stderr)
        return exit_codes.INTERRUPTED


def _expand_paths(arguments: argparse.Namespace) -> None:
    """Replace `~` and environment variables in every argument that is a path; a shell leaves `--out=~/x` as it is.

    Raises:
        ConfigError: there is no such home folder or variable.
    """
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, Path(expand_path(name, str(value))))


class _Parser(argparse.ArgumentParser):
    """Answers a mistake in one line: what was given, what is allowed, the nearest valid choice."""

    def error(self, message: str) -> NoReturn:
        """Print the message as a line `error: ...`, and exit with 2."""
        text = f"{message.removeprefix('argument ')}; see {self.prog} --help"
        raise SystemExit(exit_codes.report_error(text))

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Exit with 2, for `words` of the command line that no argument takes."""
        option = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
        if option is None:
            self.error(f"{self.prog}: got {show_value(words[0])}, which is one argument too many")
        allowed = [each for each in self._option_string_actions if each.startswith("--")]
        self.error(f"{option}: no such option of {self.prog}; {_allowed(option, allowed)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            allowed = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"got {show_value(value)}; {_allowed(str(value), allowed)}")


def _allowed(given: str, choices: Sequence[str]) -> str:
    close = nearest(given, choices)
    return f"allowed: {', '.join(choices)}" + (f"; nearest: {close}" if close else "")


def _build_parser(called: str | None) -> _Parser:
    """Build the parser of every command's name, and of the arguments of the one that was called."""
    parser = _Parser(
        prog="rlpheads",
        description="Train image classifiers, and measure how much of the training set each layer memorises.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rlpheads {rlpheads.__version__}")
    parser.set_defaults(run=None, takes_settings=False)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = import_module(f"rlpheads.engine.commands.{name}") if name == called else None
        takes_settings = getattr(command, "TAKES_SETTINGS", False)
        subparser = subparsers.add_parser(name, help=summary, allow_abbrev=False, add_help=not takes_settings)
        if command is not None:
            command.add_arguments(subparser)
            subparser.set_defaults(run=command.run, parser=subparser, takes_settings=takes_settings)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
