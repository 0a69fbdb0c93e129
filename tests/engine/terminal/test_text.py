"""Names from users and files on a terminal: shown whole, never acted upon; commands that a shell reads back."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpheads.engine.terminal.text import printable, shell_word, wrap_words

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@pytest.mark.wrong("output")
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("bell\a", r"bell\x07"),
        ("two\nlines\r", r"two\nlines\r"),
        ("exe.\u202egpj", r"exe.\u202egpj"),
        ("\x9b2J", r"\x9b2J"),
        ("line\u2028separator", r"line\u2028separator"),
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
        ("\ud800", r"\ud800"),
        ("[bold]é λ – 猫 :cat: \\", "[bold]é λ – 猫 :cat: \\"),
    ],
)
def test_what_controls_a_terminal_is_shown_as_an_escape(name, shown):
    assert printable(name) == shown
    assert printable(Path(name)) == shown


def test_what_is_kept_is_kept():
    assert printable("a\tb\nc\x1b", keep="\n\t") == "a\tb\nc\\x1b"


@given(NAMES)
def test_no_control_character_is_left(name):
    assert not set(printable(name)) & {chr(code) for code in (*range(32), *range(127, 160))}
    assert printable(printable(name)) == printable(name)


@pytest.mark.wrong("output")
@pytest.mark.parametrize(
    "name",
    ["my runs/a b", "it's", "$HOME `id` *", "[old]/[/red]", "a\nb", "\x1b[2J", "\\x41'\a", os.fsdecode(b"caf\xe9")],
)
def test_a_shell_reads_the_printed_word_back(name):
    assert printable(shell_word(name)) == shell_word(name)
    echoed = subprocess.run(["bash", "-c", f"printf %s {shell_word(name)}"], capture_output=True, check=False)
    assert echoed.stdout == os.fsencode(name)


def test_plain_paths_are_not_quoted():
    assert shell_word(Path("/data/runs/digits_vit")) == "/data/runs/digits_vit"


@given(st.text(st.sampled_from("ab  /"), max_size=60), st.integers(1, 20))
def test_lines_are_broken_between_words_only(text, width):
    wrapped = wrap_words(text, width)
    assert wrapped.split() == text.split()
    for line in wrapped.splitlines():
        assert len(line) <= width or len(line.split()) == 1


def test_a_command_in_a_line_is_not_broken():
    command = "rlpheads audit 'my run'"
    assert (
        wrap_words(f"next: {command} says what is held", 12, command) == f"next:\n  {command}\n  says what\n  is held"
    )


def test_spaces_inside_a_line_stay_as_they_are():
    assert wrap_words("loss 0.1  top-1 5%  ETA 0:01", 19) == "loss 0.1  top-1 5%\n  ETA 0:01"
