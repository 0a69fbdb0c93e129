"""How wide output is: as COLUMNS says, and wide enough for every table where there is no terminal."""

import pytest

from rlpheads.engine.report.console import open_console


@pytest.mark.parametrize("stderr", [False, True])
def test_output_without_a_terminal_is_wide_unless_columns_says_otherwise(stderr, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    open_console(stderr=stderr).print("x" * 190)
    monkeypatch.setenv("COLUMNS", "100")
    open_console(stderr=stderr).print("y" * 190)
    printed = capsys.readouterr()
    text, other = (printed.err, printed.out) if stderr else (printed.out, printed.err)
    assert text.splitlines() == ["x" * 190, "y" * 100, "y" * 90]
    assert other == ""


def test_a_quiet_console_prints_nothing(capsys):
    open_console(quiet=True).print("nothing")
    assert capsys.readouterr() == ("", "")
