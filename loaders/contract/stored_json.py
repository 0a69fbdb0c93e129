"""JSON beside data, as `rlpheads verify` and `rlpheads convert` write it: damage is one ValueError that says what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import UnionType
from typing import Any

_LARGEST = 2**63 - 1
_MOST_SHOWN = 40


def parse_json(content: bytes) -> Any:
    """Return what UTF-8 bytes hold.

    Raises:
        ValueError: If they are no UTF-8, no JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(content.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def check_types(found: Any, types: Mapping[str, type | UnionType]) -> dict[str, Any]:
    """Return a mapping that has just the keys of `types`, each with a value of its type; whole numbers are 0 to 2⁶³ - 1.

    Raises:
        ValueError: If it is another one, or none.
    """
    if type(found) is not dict:
        raise ValueError("it holds no mapping")
    if missing := sorted(types.keys() - found.keys()):
        raise ValueError(f"it lacks {', '.join(missing)}")
    if unknown := sorted(found.keys() - types.keys()):
        raise ValueError(f"it has {unknown[0][:_MOST_SHOWN]!r}, which is no key of it")
    for key, kind in types.items():
        value = found[key]
        if not isinstance(value, kind) or (isinstance(value, int) and not _is_count(value)):
            raise ValueError(f"{key} is {repr(value)[:_MOST_SHOWN]}, which is no {getattr(kind, '__name__', kind)}")
    return found


def reasons_by_index(found: Mapping[str, Any]) -> dict[int, str]:
    """Return texts by sample, of a mapping whose keys are numbers in text, as JSON has them.

    Raises:
        ValueError: If a key is no index, or a value no text.
    """
    for index, reason in found.items():
        if not (index.isascii() and index.isdigit()) or not isinstance(reason, str):
            raise ValueError(f"{index[:_MOST_SHOWN]!r}: {repr(reason)[:_MOST_SHOWN]} is no reason by index")
    return {int(index): reason for index, reason in found.items()}


def _is_count(value: int) -> bool:
    return not isinstance(value, bool) and 0 <= value <= _LARGEST
