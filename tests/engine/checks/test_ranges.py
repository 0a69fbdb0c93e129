"""Every number of a configuration has a range, and the range says which numbers it holds."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from rlpheads.engine.checks.ranges import RANGES, Range
from rlpheads.engine.config.schema import Config


def numbers_of(cls: type, prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            keys |= numbers_of(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif parts_of(hint) & {int, float}:
            keys.add(prefix + name)
    return keys


def parts_of(hint: Any) -> set[Any]:
    """The types that a hint is made of, those inside an optional tuple among them."""
    tuples = [part for part in get_args(hint) if get_origin(part) is tuple]
    return {hint, *get_args(hint)}.union(*map(get_args, tuples))


def test_every_number_has_a_range() -> None:
    """A new number in a dataclass is given a range here, or this fails."""
    assert set(RANGES) == numbers_of(Config)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (Range(1), [1, 2.5, 1e300], [0.999, -1], "at least 1"),
        (Range(0, open_low=True), [5e-324], [0, -1], "above 0"),
        (Range(0, 1, open_high=True), [0, 0.99], [1, 2, -0.1], "at least 0 and below 1"),
        (Range(high=2), [-1e300, 2], [2.1], "at most 2"),
    ],
)
def test_range_holds_its_numbers_and_says_which(
    allowed: Range, inside: list[Any], outside: list[Any], words: str
) -> None:
    assert all(number in allowed for number in inside)
    assert not any(number in allowed for number in outside)
    assert str(allowed) == words
