"""What is recorded of a run's environment: versions, devices, variables and the source commit."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import psutil
import pytest
import torch

from rlpheads.engine.runs.environment import PACKAGES, _git, collect_environment


def test_env_names_versions_and_devices() -> None:
    environment = collect_environment()
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["packages"]["rlpheads"] == "0.1.0"
    assert set(environment["packages"]) == set(PACKAGES)
    assert environment["python"]["version"] == platform.python_version()
    assert environment["system"]["cores"] == psutil.cpu_count(logical=False)
    assert environment["system"]["threads"] == psutil.cpu_count()
    assert environment["system"]["memory_gib"] == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.1)
    assert environment["torch"]["threads"] == torch.get_num_threads()
    assert (environment["cuda"] is not None) is torch.cuda.is_available()
    assert environment["tiles"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there, and cuDNN is loaded for it")
def test_cudnn_is_not_loaded_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a limit on virtual memory (ulimit -v 3000000) loading it ends the process with SIGABRT."""

    def aborts() -> int:
        raise AssertionError

    monkeypatch.setattr(torch.backends.cudnn, "version", aborts)
    assert collect_environment()["torch"]["cudnn"] is None


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
