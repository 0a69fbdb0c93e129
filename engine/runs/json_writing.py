"""JSON as a run folder holds it, written so that every reader takes it: no NaN and no Infinity, which JSON does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def finite_or_none(value: Any) -> Any:
    """Return `value` with None for every float, in mappings and lists too, that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(item) for item in value]
    return value


def json_text(content: Mapping[str, Any], indent: int | None = None) -> str:
    """Return JSON text with an end of line; a number that is not finite is null, and what JSON cannot hold is its text."""
    return json.dumps(finite_or_none(content), indent=indent, default=str, allow_nan=False) + "\n"
