"""Any words, YAML or TOML for the settings: they are read, or one ConfigError of one line says what is wrong; at once."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutate_bytes, run_cases

from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.files import SHIPPED
from rlpheads.engine.terminal.text import printable

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3600)]
CASES = 1500
SECONDS = 10.0
SHIPPED_FILES = sorted(path for path in SHIPPED.glob("*") if path.suffix in (".yaml", ".toml"))
WORDS = [
    "--config",
    "--epochs",
    "--optim.lr",
    "--help_",
    "--model.args.x",
    "--heads.taps",
    "--data.root",
    "=",
    "--",
    "-1",
    "1e3",
]


def parse(argv: list[str]) -> None:
    try:
        parse_config(argv)
    except ConfigError as error:
        assert printable(error).strip()


@settings(max_examples=2000, deadline=20_000, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=20)), max_size=6))
def test_any_words_are_settings_or_one_error(words):
    try:
        parse([word for word in words if word not in ("-h", "--help")])
    except SystemExit:
        pytest.fail("no word but help ends the program")


@pytest.mark.parametrize("path", SHIPPED_FILES, ids=lambda path: path.name)
def test_a_mutated_file_is_settings_or_one_error(path, tmp_path):
    def check(case: int) -> None:
        rng = random.Random(f"{path.name}{case}")
        mutated = tmp_path / f"{case}{path.suffix}"
        mutated.write_bytes(mutate_bytes(path.read_bytes(), rng, [other.read_bytes() for other in SHIPPED_FILES]))
        parse(["--config", str(mutated)])
        mutated.unlink()

    report = run_cases(check, range(CASES), seconds=SECONDS)
    assert not report.failures, f"{len(report.failures)} of {report.cases}: " + "\n".join(report.failures[:5])
