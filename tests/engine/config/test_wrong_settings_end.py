"""However a setting is wrong, the program ends with 2 and one line; and no setting at all ends it otherwise."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wrong_flags import FLAGS
from wrong_settings import CONTRADICTIONS, DIGITS, NAMES, NUMBERS

from rlpheads.engine import exit_codes, train
from rlpheads.engine.checks.checks import check_config
from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.ranges import RANGES
from rlpheads.engine.config.schema import Config


@pytest.mark.long
@pytest.mark.parametrize(
    "argvs",
    [
        [argv for argv, _ in FLAGS],
        *([[*DIGITS, *flags] for flags, _ in cases] for cases in (NUMBERS, CONTRADICTIONS, NAMES)),
    ],
    ids=["flags", "numbers", "contradictions", "names"],
)
def test_whole_corpus_ends_the_program_with_one_line(argvs, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv in argvs:
        assert train.main(argv) == exit_codes.WRONG_SETTINGS
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: "), line
    assert not list(tmp_path.iterdir()), "nothing is made"


def leaves(kind: Any, prefix: str = "") -> typing.Iterator[tuple[str, Any]]:
    """Yield every key with its type, but for the mapping that goes to timm unread, which may ask for any amount of work."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from leaves(hints[field.name], f"{prefix}{field.name}.")
        elif field.name != "args":
            yield f"{prefix}{field.name}", hints[field.name]


EXTREMES = ["0", "1", "-1", "2", "3", "7", "0.5", "1.0", "1e-30", "1e30", "9223372036854775807", "null", "true", "[]"]
WORDS = [choice for _, hint in leaves(Config) for choice in typing.get_args(hint) if isinstance(choice, str)]
VALUES = st.sampled_from([*EXTREMES, *WORDS, "[0]", "[1, 2]", "[0.1, 0.2, 0.3]", "[a]", "[-1, 3.attn]", "x/y", "."])
SETTINGS = st.lists(st.tuples(st.sampled_from([key for key, _ in leaves(Config)]), VALUES), min_size=1, max_size=3)


@pytest.mark.long
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(changes=SETTINGS)
def test_any_settings_are_sound_or_refused(changes: list[tuple[str, str]]) -> None:
    """Any other exception than ConfigError fails this."""
    argv = [f"--{key}={value}" for key, value in changes]
    try:
        config = parse_config([*DIGITS, *argv])
        check_config(config, 1)
    except ConfigError as error:
        assert str(error)
        assert "Traceback" not in str(error)


def test_fuzz_knows_every_number():
    keys = {key for key, _ in leaves(Config)}
    assert RANGES.keys() <= keys
    assert Path(DIGITS[1]).exists()
