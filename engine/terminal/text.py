"""Text of users and files made fit for a terminal: control characters as escapes, commands that can be pasted."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata

_CONTROL_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that a terminal acts upon or cannot show: controls, formats, lone surrogates, line separators."""


def printable(text: object, *, keep: str = "") -> str:
    r"""Return text on one line, in which no character controls the terminal.

    Control and format characters, line breaks and bytes that are no UTF-8 become escapes: `\x1b`, `\n`, `\u202e`, `\xe9`.

    Args:
        text: anything; its `str` is shown.
        keep: control characters that are left as they are.
    """
    words = str(text)
    if words.isprintable():
        return words
    return "".join(character if character in keep else _escape_control(character) for character in words)


def _escape_control(character: str) -> str:
    if unicodedata.category(character) not in _CONTROL_CATEGORIES:
        return character
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is no UTF-8 (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shell_word(word: object) -> str:
    r"""Return a word as a shell reads it: quoted where it has to be, with control characters and stray bytes as $'\x1b'."""
    text = str(word)
    if printable(text) == text:
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(_shell_escape(character) for character in escaped) + "'"


def _shell_escape(character: str) -> str:
    if printable(character) == character:
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def wrap_words(text: str, width: int, whole: str = "") -> str:
    """Return text broken into lines of at most `width` columns between words; a longer word, such as a path, stays whole.

    Args:
        text: one line.
        width: columns.
        whole: part of the text that is not broken either, such as a command to be copied.
    """
    lines = [""]
    phrase = f"{re.escape(whole)}\\S*|" if whole else ""
    for gap, word in re.findall(rf"(\s*)({phrase}\S+)", text):
        if not lines[-1].strip() or len(lines[-1] + gap + word) <= width:
            lines[-1] += gap + word
        else:
            lines.append(f"  {word}")
    return "\n".join(lines)
