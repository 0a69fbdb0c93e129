"""The console script: `rlpheads env` as table and JSON, and what it says of commands it does not know."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

from rlpheads.engine.cli import main
from rlpheads.engine.runs.environment import PACKAGES, _git, collect_environment


def test_env_as_json_is_the_collected_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == collect_environment()


def test_env_names_versions_and_devices() -> None:
    environment = collect_environment()
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["packages"]["rlpheads"] == "0.1.0"
    assert set(environment["packages"]) == set(PACKAGES)
    assert environment["python"]["version"] == platform.python_version()
    assert environment["system"]["memory_gib"] > 0
    assert environment["torch"]["threads"] == torch.get_num_threads()
    assert (environment["cuda"] is not None) is torch.cuda.is_available()
    assert environment["tiles"] is None


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


def test_only_variables_that_matter_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("MY_SECRET_TOKEN", "hidden")
    variables = collect_environment()["variables"]
    assert variables["NCCL_DEBUG"] == "INFO"
    assert "hidden" not in json.dumps(variables)


def test_commit_is_of_a_checkout_at_the_very_root(tmp_path: Path) -> None:
    """A package installed somewhere inside another project's checkout must not report that project's commit."""

    def git(*command: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *command], capture_output=True, text=True, check=True
        ).stdout.strip()

    root = tmp_path.resolve()
    assert _git(root) is None
    git("init", "-q")
    assert _git(root) == {"commit": None, "modified": False}
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("1")
    assert _git(root) == {"commit": None, "modified": True}
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert _git(root) == {"commit": git("rev-parse", "HEAD"), "modified": False}
    assert _git(root / "inner") is None


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "env" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["environment"], ["env", "--js"], ["env", "extra"]])
def test_what_is_not_understood_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    assert argv[-1] in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == "rlpheads 0.1.0\n"


def test_console_script_is_this_function() -> None:
    (script,) = (each for each in entry_points(group="console_scripts") if each.name == "rlpheads")
    assert script.load() is main


def test_help_does_not_import_torch() -> None:
    code = "import sys\nfrom rlpheads.engine.cli import main\nmain([])\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
