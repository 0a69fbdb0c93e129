"""`rlpheads env`, as table and as JSON."""

import json

import pytest

from rlpheads.engine.cli import main
from rlpheads.engine.runs.environment import collect_environment


def test_env_as_json_is_the_collected_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == collect_environment()


def test_env_as_table_shows_every_value_unbroken_by_the_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NCCL_DEBUG", "[bold]" + "x" * 100)
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert "packages.torch " in out
    assert out.count("x" * 10) >= 2
    assert "[bold]" in out
    assert out.replace(" ", "").replace("\n", "").count("x" * 100) == 1
