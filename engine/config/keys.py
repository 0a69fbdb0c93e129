"""Every key of a configuration by its dotted name, with its type, and the groups of them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, get_type_hints

from rlpheads.engine.config.schema import Config


class KnownKeys(NamedTuple):
    """The keys of `Config` and what they are grouped in."""

    leaves: dict[str, Any]
    """Type hint by dotted key."""
    groups: dict[str, list[str]]
    """Keys directly below, by the dotted key of a group."""


@functools.cache
def known_keys() -> KnownKeys:
    """Return the keys of `Config`, in its order."""
    keys = KnownKeys({}, {})

    def visit(cls: type, prefix: str) -> None:
        for name, hint in get_type_hints(cls).items():
            if isinstance(hint, type) and dataclasses.is_dataclass(hint):
                keys.groups[prefix + name] = [f"{prefix}{name}.{below}" for below in get_type_hints(hint)]
                visit(hint, f"{prefix}{name}.")
            else:
                keys.leaves[prefix + name] = hint

    visit(Config, "")
    return keys
