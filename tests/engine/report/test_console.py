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


@pytest.mark.wrong("output")
@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_a_table_wider_than_the_console_is_printed_in_parts_that_cut_nothing_off(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    headings = ["arm", "held-out top-1", "memorised samples", "own heads", "membership excess", "bits"]
    table = Table(*headings, title="t i t l e")
    table.add_row("free", *(f"{number}7.25 ± 0.5" for number in range(1, 6)))
    open_console().print(table)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    assert "…" not in printed
    assert all(printed.count(f"{number}7.25") == 1 for number in range(1, 6))
    assert all(word in printed for heading in headings for word in heading.split())
    assert printed.count("t i t l e") == 1
    assert printed.count("free") == printed.count("arm") >= 1
    assert (printed.count("free") == 1) == (width >= 80)
