"""JSON as a run folder holds it: mappings, read so that any damage is one error with the reason."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

Kind = Literal["text", "number", "finite number", "count", "mapping", "list"]
"""What a value must be; a count is a whole number of at least 0, and like every number fits into 64 bits."""

_LARGEST = 2**63 - 1
_MOST_SHOWN = 40


class DamagedJsonError(ValueError):
    """Bytes that are no JSON mapping, or one without what it should have; the message says why, in one line."""


def parse_mapping(content: bytes, kinds: Mapping[str, Kind] | None = None) -> dict[str, Any]:
    """Return the mapping that UTF-8 bytes hold.

    Args:
        content: the bytes.
        kinds: what the mapping must have at least, by key.

    Raises:
        DamagedJsonError: they are no UTF-8, no JSON, nested too deeply to be read, or no such mapping.
    """
    try:
        found = json.loads(content.decode())
    except RecursionError as error:
        raise DamagedJsonError("it is nested too deeply") from error
    except ValueError as error:
        raise DamagedJsonError(str(error)) from error
    if not isinstance(found, dict):
        raise DamagedJsonError("it holds no mapping")
    check_kinds(found, kinds or {})
    return found


def check_kinds(found: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Compare the values of a mapping with what they must be.

    Raises:
        DamagedJsonError: a key is missing, or its value is of another kind.
    """
    if missing := [key for key in kinds if key not in found]:
        raise DamagedJsonError(f"it lacks {', '.join(missing)}")
    for key, kind in kinds.items():
        if not _IS_OF_KIND[kind](found[key]):
            raise DamagedJsonError(f"{key} is {repr(found[key])[:_MOST_SHOWN]}, which is no {kind}")


def check_items(name: str, found: Any, kind: Kind) -> list[Any]:
    """Return a list that holds values of one kind.

    Raises:
        DamagedJsonError: it is no list, or a value is of another kind.
    """
    check_kinds({name: found}, {name: "list"})
    for value in found:
        if not _IS_OF_KIND[kind](value):
            raise DamagedJsonError(f"{name} holds {repr(value)[:_MOST_SHOWN]}, which is no {kind}")
    return list(found)


def nesting(found: Any) -> int:
    """Return how many lists and mappings lie in each other: 0 for a text or number."""
    depth, level = 0, [found]
    while level := [value for value in level if isinstance(value, (list, dict))]:
        depth += 1
        level = [each for value in level for each in (value.values() if isinstance(value, dict) else value)]
    return depth


def read_rows(path: Path, kinds: Mapping[str, Kind]) -> Iterator[dict[str, Any]]:
    """Yield the mappings of a file of one a line: what `kinds` names, and figures (numbers, nulls, lists of both).

    A row whose `kind` is event holds text as well.

    A last line without its end was torn by the death of the run and is left out.

    Raises:
        DamagedJsonError: another line is damaged; its number, from 1, is named.
    """
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            row = parse_mapping(line, kinds)
            for key in row.keys() - kinds.keys():
                if not _is_figure(row[key]) and not (row.get("kind") == "event" and type(row[key]) is str):
                    raise DamagedJsonError(f"{key} is {repr(row[key])[:_MOST_SHOWN]}, which is no number")
        except DamagedJsonError as error:
            if line.endswith(b"\n"):
                raise DamagedJsonError(f"line {number}: {error}") from error
            return
        yield row


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= _LARGEST)


def _is_figure(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return all(item is None or isinstance(item, bool) or _is_number(item) for item in items)


_IS_OF_KIND: dict[Kind, Callable[[Any], bool]] = {
    "text": lambda value: type(value) is str,
    "number": _is_number,
    "finite number": lambda value: _is_number(value) and math.isfinite(value),
    "count": lambda value: type(value) is int and 0 <= value <= _LARGEST,
    "mapping": lambda value: type(value) is dict,
    "list": lambda value: type(value) is list,
}
