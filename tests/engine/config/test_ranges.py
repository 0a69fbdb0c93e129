"""Every number of a configuration has a range, and the range says which numbers it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.ranges import RANGES, Range
from rlpheads.engine.config.schema import Config
from rlpheads.engine.train import read_settings


def number_hints(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key that takes numbers, with its type."""
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from number_hints(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif parts_of(hint) & {int, float}:
            yield prefix + name, hint


def parts_of(hint: Any) -> set[Any]:
    """The types that a hint is made of, those inside an optional tuple among them."""
    tuples = [part for part in get_args(hint) if get_origin(part) is tuple]
    return {hint, *get_args(hint)}.union(*map(get_args, tuples))


def test_every_number_has_a_range() -> None:
    """A new number in a dataclass is given a range here, or this fails."""
    assert set(RANGES) == {key for key, _ in number_hints(Config)}


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (Range(1), [1, 2.5, 1e9], [0.999, -1], "at least 1"),
        (Range(1), [1], [10**20, 1e300], "at least 1 and at most 1000000000"),
        (Range(0, open_low=True), [5e-324], [0, -1], "above 0"),
        (Range(0, 1, open_high=True), [0, 0.99], [1, 2, -0.1], "at least 0 and below 1"),
        (Range(high=2), [-1e9, 2], [2.1], "at most 2"),
        (Range(high=2), [2], [-1e300], "at least -1000000000 and at most 2"),
        (Range(0, 2**63 - 1), [2**63 - 1], [2**64], "at least 0 and at most 9223372036854775807"),
    ],
)
def test_range_holds_its_numbers_and_says_which(
    allowed: Range, inside: list[Any], outside: list[Any], words: str
) -> None:
    assert all(number in allowed for number in inside)
    assert not any(number in allowed for number in outside)
    assert allowed.describe(*outside) == words


CUT = ["99999999999999999999", "1e300"]
HUGE = [*CUT, "-99999999999999999999", "-1e300", "1e400", ".inf", ".nan"]


@pytest.mark.wrong("numbers")
@pytest.mark.parametrize("text", HUGE)
def test_no_number_is_taken_that_is_too_large_for_a_machine(text: str, tmp_path: Path) -> None:
    """Every key that takes a number, by its type: alone, or as each number of a list. (A warm-up is cut to the run.)"""
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 3")
    for key, hint in number_hints(Config):
        if key == "schedule.warmup_epochs" and text in CUT:
            continue
        tuples = [part for part in (hint, *get_args(hint)) if get_origin(part) is tuple]
        given = ",".join([text] * len(get_args(tuples[0]))) if tuples else text
        with pytest.raises(ConfigError) as caught:
            read_settings(["--config", str(file), f"--{key}={given}"], str)
        assert str(caught.value).removeprefix("--").startswith(f"{key}: got "), key
        assert "; allowed: " in str(caught.value)
