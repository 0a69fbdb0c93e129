"""How wide output is: as COLUMNS says, and wide enough for every table where there is no terminal."""

import pytest
from rich.panel import Panel
from rich.table import Table

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


@pytest.mark.long
@pytest.mark.wrong("output")
@pytest.mark.parametrize("name", ["[old]/[/red]", "[/]", "[bold]x", "[link=file:///x]y", ":cat: [1]"])
def test_brackets_and_colons_of_names_are_text_everywhere(name, capsys):
    console = open_console()
    console.print(name)
    table = Table(name, title=name, caption=name)
    table.add_row(name)
    console.print(table)
    console.print(Panel(name))
    assert capsys.readouterr().out.count(name) == 6


@pytest.mark.wrong("output")
def test_no_name_controls_the_terminal(capsys):
    table = Table("two\nlines")
    table.add_row("\x1b[31mred\a")
    open_console().print(table)
    printed = capsys.readouterr().out
    assert r"\x1b[31mred\x07" in printed
    assert "\x1b" not in printed
    assert [line.split()[1] for line in printed.splitlines()[1:3]] == ["two", "lines"]
