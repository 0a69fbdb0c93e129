"""Errors about a configuration: the exception, how a value is quoted in its message, the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_SHOWN_LENGTH = 300
_WORDS: dict[object, str] = {None: "null", True: "true", False: "false"}


class UserError(ValueError):
    """What was asked for cannot be done; the message is all that its reader needs. Any other ValueError is a bug of ours."""


class ConfigError(UserError):
    """A configuration that cannot be run. The message names the key or file, what was given and what is allowed."""


class RankError(ConfigError):
    """An error of this rank that others need not have: every rank that finds one prints it."""


def show_value(value: object) -> str:
    """Return `value` as a message quotes it: YAML's words for null and booleans, text in quotes, long values cut."""
    if value is None or isinstance(value, bool):
        return _WORDS[value]
    text = repr(value)
    return text if len(text) <= _SHOWN_LENGTH else text[: _SHOWN_LENGTH - 1] + "…"


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the one of `choices` that `word` was most likely meant to be (case is ignored), or None."""
    by_lower_case = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(word.lower(), by_lower_case, n=1)
    return by_lower_case[matches[0]] if matches else None


def refusal(key: str, given: object, allowed: str) -> ConfigError:
    """Return the error that says what `key` was given and what it allows."""
    return ConfigError(f"{key}: got {show_value(given)}; allowed: {allowed}")
