"""Conversion of a configuration value to its field's type, strictly: it fits the type hint, or is refused.

Nothing is guessed: true is no number, 10.0 is no whole number, '5' in quotes is text, and a number is finite. Only two
conversions are made, both exact: a whole number becomes a float where a float is wanted, and a list becomes a tuple. On a
command line a list may go without its brackets: 0,-1.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from rlpheads.engine.config.errors import ConfigError, nearest, refusal
from rlpheads.engine.config.files import parse_yaml

_MAX_DEPTH = 16  # of nested lists and mappings in a free-form value
_ONE = {
    bool: "true or false",
    int: "a whole number (10, not 10.0 or 1e1)",
    float: "a finite number",
    str: "text",
    dict: "a mapping of names to null, true, false, finite numbers, text, or lists and mappings of these",
    types.NoneType: "null",
    Any: "null, true, false, a finite number, text, or a list or mapping of these",
}
_MANY = {int: "whole numbers", float: "finite numbers", str: "texts", int | str: "whole numbers and texts"}


class _MismatchError(Exception):
    """The value does not fit the hint."""


def convert_value(key: str, value: object, hint: Any) -> Any:
    """Return `value`, as read from a file, in the type of `hint`.

    Raises:
        ConfigError: `key` was given something that the hint does not allow.
    """
    try:
        return _convert(value, hint)
    except _MismatchError:
        raise _refuse(key, value, hint) from None


def convert_text(key: str, text: str, hint: Any) -> Any:
    """Return `text`, as written on a command line, in the type of `hint`.

    Where text is allowed it is taken as it stands (`--run.name 007`), but for null where that is allowed too. Anything
    else is read as YAML, and a list without brackets too: `0,3.attn`, `-1`.

    Raises:
        ConfigError: `key` was given something that the hint does not allow.
    """
    for read in (_read_null, _read_any if hint is Any else str, _read_yaml, _read_bare_list):
        try:
            return _convert(read(text), hint)
        except _MismatchError:
            continue
    raise _refuse(key, text, hint)


def describe(hint: Any) -> str:
    """Return what a field of type `hint` allows, in words."""
    *first, last = _alternatives(hint)
    return f"{', '.join(first)} or {last}" if first else last


def _alternatives(hint: Any) -> list[str]:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return list(args)
    if origin in (Union, types.UnionType):
        return [alternative for arg in args for alternative in _alternatives(arg)]
    if origin is list:
        return [f"a list of {_MANY[args[0]]} such as {'[0, -1]' if args[0] is int else '[0, 3.attn]'}"]
    if origin is tuple:
        return [f"a list of {len(args)} {_MANY[args[0]]}"]
    return [_ONE[origin or hint]]


def _refuse(key: str, value: object, hint: Any) -> ConfigError:
    alternatives = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    choices = [choice for each in alternatives if get_origin(each) is Literal for choice in get_args(each)]
    match = nearest(value, choices) if isinstance(value, str) else None
    return refusal(key, value, describe(hint) + (f" (nearest: {match})" if match else ""))


def _read_null(text: str) -> None:
    if text != "null":
        raise _MismatchError


def _read_yaml(text: str) -> Any:
    try:
        value = parse_yaml(text)
    except ConfigError:
        raise _MismatchError from None
    if value is None:  # "", "~" and "# comment" are null in YAML; on a command line they are slips
        raise _MismatchError
    return value


def _read_bare_list(text: str) -> list[Any]:
    """Read a list without its brackets; a lone word is none, so that a slip in a word of ours is told as one."""
    items = [item.strip() for item in text.split(",")]
    if items[0].startswith("[") or (len(items) == 1 and items[0].isalpha()):
        raise _MismatchError
    return [_read_yaml(item) for item in items]


def _read_any(text: str) -> Any:
    """Read numbers, booleans, lists, mappings and quoted text as YAML; take anything else as it stands, # included."""
    try:
        value = _read_yaml(text)
    except _MismatchError:
        return text
    return text if isinstance(value, str) and text[0] not in "'\"" else value


def _convert(value: object, hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, args)
    if origin is Literal and isinstance(value, str) and value in args:
        return value
    if origin is list and isinstance(value, list):
        return [_convert(item, args[0]) for item in value]
    if origin is tuple and isinstance(value, list) and len(value) == len(args):
        return tuple(_convert(item, arg) for item, arg in zip(value, args, strict=True))
    if origin is dict and isinstance(value, dict):
        return _convert_plain(value, depth=0)
    if origin is None:
        return _convert_plain(value, depth=0) if hint is Any else _convert_scalar(value, hint)
    raise _MismatchError


def _convert_union(value: object, hints: tuple[Any, ...]) -> Any:
    for hint in hints:
        try:
            return _convert(value, hint)
        except _MismatchError:
            continue
    raise _MismatchError


def _convert_scalar(value: object, hint: type) -> Any:
    if hint is float and type(value) is int:
        value = _to_float(value)
    if type(value) is not hint or (isinstance(value, float) and not math.isfinite(value)):
        raise _MismatchError
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise _MismatchError  # bytes of a command line that are not UTF-8: they could not be written to config.yaml
    return value


def _to_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _MismatchError from None


def _convert_plain(value: object, depth: int) -> Any:
    """Return a free-form value if it is built of what YAML and TOML share."""
    if depth > _MAX_DEPTH:
        raise _MismatchError
    if isinstance(value, list):
        return [_convert_plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_convert_scalar(key, str): _convert_plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (types.NoneType, bool, int, float, str)):
        return _convert_scalar(value, type(value))
    raise _MismatchError


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        is_section = isinstance(value, Mapping) and value
        flat |= flat_settings(value, f"{prefix}{key}.") if is_section else {prefix + key: value}
    return flat
