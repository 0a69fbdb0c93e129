"""What stands around the code and can go stale: the locked versions, paths and make targets that are named, CI and hooks."""

import importlib.metadata
import re

import pytest
import yaml
from house import ROOT, source_files

NOT_LOCKED = {"trackio": "it needs huggingface-hub < 2 and pillow < 13, which the locked versions are past"}
"""Extras that cannot be installed beside the locked versions, each with the reason; they install without the lock."""


def test_exact_lock_satisfies_the_ranges():
    from packaging.requirements import Requirement

    locked = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
    locked = {name.lower().replace("_", "-"): version for name, version in locked.items()}
    required = [Requirement(text) for text in importlib.metadata.requires("rlpheads") or []]
    assert required
    for requirement in required:
        name = requirement.name.lower().replace("_", "-")
        if name in ("setuptools", "wheel"):  # pip freeze leaves the installers out
            continue
        if name in NOT_LOCKED:
            assert name not in locked
            continue
        assert name in locked, f"{name} is not locked; run make lock"
        assert requirement.specifier.contains(locked[name]), (
            f"{name}=={locked[name]} is outside {requirement.specifier}"
        )


def test_pinned_versions_are_the_ones_that_were_asked_for():
    lock = (ROOT / "requirements.lock").read_text().split()
    assert {"torch==2.14.1", "torchvision==0.29.1", "timm==1.0.31"} <= set(lock)


def test_files_that_the_documentation_names_are_there():
    named = re.compile(
        r"(?<![\w/.])((?:engine|loaders|kernels|memorization|tests|scripts|benchmarks|examples)/[a-z0-9_/]+\.(?:py|cpp|h))\b"
    )
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    missing = {
        f"{page.relative_to(ROOT)}: {name}"
        for page in pages
        if page.name != "CHANGELOG.md"
        for name in named.findall(page.read_text())
        if not (ROOT / name).is_file()
    }
    assert not missing


def test_nothing_names_a_machine():
    """No absolute path of a developer's machine, and no package index, is in a file that ships."""
    suspicious = re.compile(r"(/home/|/root/|/work/|index-url|find-links|pypi\.org)")
    shipped = [ROOT / file.name for file in source_files()]
    shipped += [ROOT / "Makefile", ROOT / "setup.py", ROOT / "requirements.lock", *ROOT.glob("*.md")]
    shipped += [*ROOT.glob("configs/*"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".ci/*"), *ROOT.glob("scripts/*.py")]
    shipped += [*ROOT.glob(".github/**/*.yml"), *ROOT.glob(".pre-commit-config.yaml")]
    found = [str(path.relative_to(ROOT)) for path in shipped if suspicious.search(path.read_text())]
    assert not found


def test_continuous_integration_is_the_same_everywhere():
    """The workflow, .ci/run and what CONTRIBUTING.md says of both."""
    targets = {
        name: re.findall(r"make ([a-z-]+)", re.sub(r"#.*", "", (ROOT / name).read_text()))
        for name in (".ci/run", ".github/workflows/ci.yml")
    }
    assert all(found == ["lint", "test"] for found in targets.values()), targets


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", ".pre-commit-config.yaml", ".github/workflows/ci.yml"]
)
def test_make_targets_and_files_that_are_named_exist(name):
    text = (ROOT / name).read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|run: )make ([a-z-]+)", text)) <= targets
    paths = re.findall(r"\b(?:scripts|tests|configs|docs|benchmarks|\.ci|\.github)/[\w./-]*\w", text)
    missing = [path for path in paths if "ROOM" not in path and not (ROOT / path).exists()]
    assert not missing


def test_hooks_run_what_is_installed_here():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    entries = {hook["entry"].split()[0] for hook in repository["hooks"]}
    assert entries == {".venv/bin/ruff", ".venv/bin/mypy", ".venv/bin/python"}
