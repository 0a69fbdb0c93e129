"""JSON as a run folder holds it: mappings, read so that any damage is one error with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class DamagedJsonError(ValueError):
    """Bytes that are no JSON mapping; the message says why, in one line."""


def parse_mapping(content: bytes) -> dict[str, Any]:
    """Return the mapping that UTF-8 bytes hold.

    Raises:
        DamagedJsonError: they are no UTF-8, no JSON, nested too deeply to be read, or no mapping.
    """
    try:
        found = json.loads(content.decode())
    except RecursionError as error:
        raise DamagedJsonError("it is nested too deeply") from error
    except ValueError as error:
        raise DamagedJsonError(str(error)) from error
    if not isinstance(found, dict):
        raise DamagedJsonError("it holds no mapping")
    return found


def read_rows(path: Path, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the mappings of a file of one a line, each with `keys` at least.

    A last line without its end was torn by the death of the run and is left out.

    Raises:
        DamagedJsonError: another line is damaged; its number, from 1, is named.
    """
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            row = parse_mapping(line)
        except DamagedJsonError as error:
            if line.endswith(b"\n"):
                raise DamagedJsonError(f"line {number}: {error}") from error
            return
        if missing := [key for key in keys if key not in row]:
            raise DamagedJsonError(f"line {number}: it lacks {', '.join(missing)}")
        yield row
