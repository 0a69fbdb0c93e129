"""The house's rules, read off the syntax tree: who may import whom, what a file may be called, no host reads."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "kernels": {"kernels"},
    "loaders": {"loaders"},
    "memorization": {"memorization", "kernels"},
    "engine": {"engine", "memorization", "kernels", "loaders"},
}
SOURCES = sorted(path for room in ALLOWED for path in (ROOT / room).rglob("*.py"))
TRACKED = [*SOURCES, *sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


STEP_FILES = [
    *(
        "engine/learner/step.py",
        "engine/learner/optimizer.py",
        "engine/learner/parts.py",
        "engine/learner/schedule.py",
        "engine/learner/loss_scale.py",
        "engine/learner/learner.py",
        "engine/model/builder.py",
    ),
    *(
        "engine/model/tapped_model.py",
        "engine/learner/ema.py",
        "engine/model/batch_norm.py",
        "memorization/heads/class_blocks.py",
    ),
    *(
        "memorization/heads/rlp_heads.py",
        "memorization/heads/hidden_layer.py",
        "memorization/heads/combined_loss.py",
        "memorization/heads/head_losses.py",
        "memorization/heads/linear_head.py",
        "engine/model/taps.py",
    ),
    *("kernels/random_label_loss.py", "kernels/stages.py", "kernels/rows/terms.py", "kernels/rows/row_softmax.py"),
    *("loaders/augment/normalize.py", "loaders/contract/delivery.py", "engine/training/device_wait.py"),
    *("kernels/label_source.py", "kernels/gpu/tuned_tiles.py"),
    *(
        "kernels/gpu/triton_loss.py",
        "kernels/gpu/triton_passes.py",
        "kernels/gpu/triton_launch.py",
        "kernels/gpu/triton_tiles.py",
    ),
    *(
        "loaders/augment/normalize.py",
        "loaders/contract/keyed_random.py",
        "loaders/augment/pipeline.py",
        "loaders/augment/boxes.py",
    ),
    *(
        "loaders/augment/policies.py",
        "loaders/augment/pixel_operations.py",
        "loaders/augment/mixing.py",
        "engine/learner/class_loss.py",
    ),
]
HOST_READS = {"item", "cpu", "tolist", "numpy", "nonzero", "argwhere", "masked_select", "unique"}


def imported_modules(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            modules.add(node.module or "")
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_arrows_between_rooms_run_one_way(path):
    rooms = {
        parts[1] for module in imported_modules(path) if (parts := module.split("."))[0] == "rlpheads" and parts[1:]
    }
    assert rooms <= ALLOWED[path.relative_to(ROOT).parts[0]]


@pytest.mark.parametrize("path", TRACKED, ids=name_of)
def test_rooms_are_imported_by_their_full_name(path):
    bare = {module.split(".")[0] for module in imported_modules(path)} & set(ALLOWED)
    assert not bare, f"write rlpheads.{min(bare)}"


def test_rooms_are_no_regular_packages():
    present = [name_of(path) for path in SOURCES if path.name == "__init__.py"]
    assert not present, "with an __init__.py the folder would shadow Hugging Face's kernels package"


def test_no_file_bears_the_name_of_a_library():
    """Torchrun puts engine/ first on sys.path, so that engine/profile.py would be everybody's `profile`.

    A folder without an __init__.py hides no installed library, wherever it is; a file does, where it is put on sys.path.
    """
    libraries = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions()}
    clashes = {path.stem for room in ALLOWED for path in (ROOT / room).glob("*.py")} & (libraries - {"rlpheads"})
    assert not clashes


def test_setup_imports_no_torch():
    assert {module.split(".")[0] for module in imported_modules(ROOT / "setup.py")} == {"setuptools"}


def test_git_ignores_no_source():
    """An unanchored `runs/` in .gitignore hides engine/runs/ from git, and from ruff."""
    names = "\n".join(name_of(path) for path in TRACKED)
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"], cwd=ROOT, input=names, capture_output=True, text=True
    )
    assert ignored.returncode == 1, ignored.stdout + ignored.stderr


@pytest.mark.parametrize("name", STEP_FILES)
def test_the_step_reads_nothing_on_the_host(name):
    tree = ast.parse((ROOT / name).read_text())
    calls = [
        node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert not HOST_READS & set(calls)


def test_the_step_is_among_the_files_that_are_checked():
    assert all((ROOT / name).exists() for name in STEP_FILES)


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
        assert name in locked, f"{name} is not locked; run make lock"
        assert requirement.specifier.contains(locked[name]), (
            f"{name}=={locked[name]} is outside {requirement.specifier}"
        )


def test_pinned_versions_are_the_ones_that_were_asked_for():
    lock = (ROOT / "requirements.lock").read_text().split()
    assert {"torch==2.14.1", "torchvision==0.29.1", "timm==1.0.31"} <= set(lock)


def test_nothing_names_a_machine():
    """No absolute path of a developer's machine, and no package index, is in a file that ships."""
    suspicious = re.compile(r"(/home/|/root/|/work/|index-url|find-links|pypi\.org)")
    shipped = [*SOURCES, ROOT / "Makefile", ROOT / "setup.py", ROOT / "requirements.lock", *ROOT.glob("*.md")]
    shipped += [*ROOT.glob("configs/*"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".ci/*")]
    found = [str(path.relative_to(ROOT)) for path in shipped if suspicious.search(path.read_text())]
    assert not found


def test_ruff_forbids_what_these_tests_forbid():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(settings["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]) == set(ALLOWED)
