"""The console script: its commands, its help, and what it says of commands it does not know."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points

import pytest

from rlpheads.engine.cli import COMMANDS, main


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "env" in capsys.readouterr().out


NOT_UNDERSTOOD = [
    ("trian", "COMMAND: got 'trian'; allowed: train, ", "; nearest: train; see rlpheads --help"),
    (
        "env --js",
        "--js: no such option of rlpheads env; allowed: --help, ",
        "; nearest: --json; see rlpheads env --help",
    ),
    (
        "env --jsno=1",
        "--jsno: no such option of rlpheads env; allowed: --help, ",
        "; nearest: --json; see rlpheads env --help",
    ),
    ("env extra", "rlpheads env: got 'extra', which is one argument too many", "; see rlpheads env --help"),
    (
        "samples RUN --phase clen",
        "--phase: got 'clen'; allowed: running, clean, heldout; nearest: clean",
        "samples --help",
    ),
    ("samples RUN --top x", "--top: invalid int value: 'x'", "; see rlpheads samples --help"),
    ("report", "the following arguments are required: RUN", "; see rlpheads report --help"),
]


@pytest.mark.parametrize(("words", "begins", "ends"), NOT_UNDERSTOOD, ids=[words for words, _, _ in NOT_UNDERSTOOD])
def test_what_is_not_understood_is_one_line_with_the_nearest(words, begins, ends, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words.split())
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {begins}")
    assert line.endswith(ends)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == "rlpheads 0.1.0\n"


def test_console_script_is_this_function() -> None:
    (script,) = (each for each in entry_points(group="console_scripts") if each.name == "rlpheads")
    assert script.load() is main


@pytest.mark.parametrize("argv", [[], ["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_does_not_import_torch(argv: list[str]) -> None:
    code = f"""
import sys
from rlpheads.engine.cli import main
try:
    main({argv})
except SystemExit as ended:
    assert ended.code == 0
assert not {{"torch", "timm", "pyarrow"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith(f"usage: {' '.join(['rlpheads', *argv[:-1]])} ")


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    help_text = " ".join(capsys.readouterr().out.split())
    for name, summary in COMMANDS.items():
        assert f"{name} {summary}" in help_text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_declares_its_arguments_and_runs(name: str) -> None:
    command = import_module(f"rlpheads.engine.commands.{name}")
    assert callable(command.add_arguments)
    assert callable(command.run)
