"""The house's rules, read off the syntax tree: who may import whom, how large things get, no host reads in a step.

`make house` prints the measures. A rule that the code does not meet yet stands in NOT_YET, which can only shrink.
"""

import ast
import importlib.metadata
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import house
import pytest
from house import ROOMS, ROOT

NOT_YET: dict[str, set[str]] = {}
"""Rule -> what still breaks it. An entry that is no longer needed fails its test: delete it."""

ROOM_ARROWS = {
    "kernels": {"kernels"},
    "loaders": {"loaders"},
    "memorization": {"memorization", "kernels"},
    "engine": {"engine", "memorization", "kernels", "loaders"},
}
"""Which rooms a room may import."""

ARROWS = {
    "engine": {
        "train": "*",
        "cli": "*",
        "commands": "page train audits retraining training offline report tables runs checks learner model distributed config "
        "exit_codes terminal",
        "audits": "training report runs checks learner model distributed config exit_codes terminal",
        "retraining": "training report runs learner model distributed config exit_codes terminal",
        "offline": "training plugins report runs checks learner model distributed config terminal",
        "training": "runs trackers plugins gauges learner report tables model distributed checks config exit_codes terminal",
        "integrations": "model config",
        "plugins": "config",
        "gauges": "model distributed config",
        "page": "report tables runs config terminal",
        "report": "learner runs terminal config",
        "tables": "runs config",
        "checks": "runs model learner plugins config",
        "learner": "model distributed config",
        "runs": "trackers distributed model plugins config",
        "trackers": "config",
        "model": "config",
        "distributed": "config",
        "config": "",
        "exit_codes": "terminal",
        "terminal": "",
    },
    "loaders": {
        "factory": "adapters sources contract",
        "store": "adapters sources decoding contract",
        "adapters": "sources decoding contract",
        "sources": "decoding contract",
        "decoding": "contract",
        "augment": "contract",
        "contract": "",
    },
    "kernels": {
        "tools": "gpu cpu rows random_label_loss",
        "tools/ptx": "tools gpu random_label_loss",
        "random_label_loss": "arguments transforms implementations batched head_gradient stages head_rows rows gpu gpu/heads"
        " label_source loss_results",
        "loss_results": "head_rows",
        "implementations": "arguments gpu",
        "head_gradient": "cpu gpu gpu/heads rows row_norms",
        "stages": "cpu gpu gpu/heads head_rows rows first_derivative",
        "batched": "head_rows rows gpu native label_source first_derivative operators",
        "pixels": "native",
        "cpu": "rows native operators",
        "gpu": "rows cache_folder label_source operators",
        "gpu/heads": "gpu rows label_source first_derivative operators",
        "arguments": "rows label_source operators",
        "transforms": "",
        "rows": "",
        "head_rows": "rows native operators",
        "native": "cache_folder",
        "cache_folder": "",
        "label_source": "operators",
        "operators": "",
        "first_derivative": "transforms",
        "row_norms": "",
    },
    "memorization": {
        "validation": "probes measures baselines heads audit arguments quantiles atomic_file",
        "audit": "probes heads measures baselines arguments quantiles atomic_file",
        "probes": "heads measures baselines arguments quantiles atomic_file",
        "figures": "measures arguments quantiles atomic_file",
        "baselines": "heads arguments quantiles atomic_file json_reading",
        "measures": "records arguments quantiles atomic_file",
        "heads": "arguments quantiles atomic_file",
        "records": "heads arguments quantiles atomic_file json_reading",
        "arguments": "",
        "quantiles": "",
        "atomic_file": "",
        "json_reading": "",
    },
}
"""Which places of its own room a place may import: a folder, or a file that lies in the room itself; * is all of them."""

STEP_FOLDERS = (
    *("engine/learner", "engine/model", "engine/distributed", "engine/gauges", "engine/training"),
    *("memorization/heads", "memorization/records"),
    *(
        "kernels",
        "kernels/rows",
        "kernels/head_rows",
        "kernels/cpu",
        "kernels/gpu",
        "kernels/gpu/heads",
        "kernels/batched",
        "kernels/pixels",
    ),
    *("loaders/augment", "loaders/contract"),
)
HOST_READS = {"item", "cpu", "tolist", "numpy", "nonzero", "argwhere", "masked_select", "unique"}
MAY_READ = {
    "engine/distributed/stop_flag.py": "the flag of the step before; it lies on the host, in a gloo group",
    "engine/gauges/meters.py": "the figures of many steps, copied to the host a step earlier without waiting",
    "engine/gauges/replicas.py": "sums over the weights' bits, copied to the host a step earlier without waiting",
    "engine/learner/fresh_refit.py": "heads are refitted at an epoch's end",
    "memorization/records/canary_file.py": "the list of canaries is read from its file before the first step",
    "memorization/records/ledger_file.py": "a ledger is written at an epoch's end",
    "kernels/cpu/tiled_cpu.py": "what the CPU's loss works on is on the host",
    "kernels/cpu/workspace.py": "memory of the host, shared with numpy",
    "loaders/contract/manifest.py": "names and sizes of files, before the first step",
    "loaders/contract/listing.py": "names and sizes of files, before the first step",
}
"""Files of the step's folders that may read on the host, each with its reason."""

POLYMORPHIC = {
    "main": "each program's entry",
    "add_arguments": "each command's arguments",
    "run": "what each command does",
    "local_partials": "a stage of the loss, on each kind of device; stages.py chooses",
    "local_class_gradients": "a stage of the loss, on each kind of device; stages.py chooses",
    **dict.fromkeys(
        ("serves", "survey", "update"), "a step in tiles, on each kind of device; head_gradient.py chooses"
    ),
}
"""Public names that stand in several files by right, each with its reason."""

SOURCES = [ROOT / file.name for file in house.source_files()]
OUTSIDE = [
    path for folder in ("benchmarks", "examples", "scripts", "tests") for path in sorted((ROOT / folder).rglob("*.py"))
]
TRACKED = [*SOURCES, *OUTSIDE]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def only_what_is_listed(rule: str, broken: set[str]) -> None:
    """Fail for what breaks a rule and is not in NOT_YET, and for what is there and no longer breaks it."""
    listed = NOT_YET.get(rule, set())
    assert not broken - listed, f"{rule}: {sorted(broken - listed)}"
    assert not listed - broken, f"{rule}: delete from NOT_YET {sorted(listed - broken)}"


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


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_between_rooms_run_one_way(room):
    places = {place: targets for place, targets in house.folder_arrows().items() if place.split("/")[0] == room}
    back = {
        f"{place} -> {target}"
        for place, targets in places.items()
        for target in targets
        if target.split("/")[0] not in ROOM_ARROWS[room]
    }
    only_what_is_listed(f"arrows out of {room}/", back)


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_between_folders_are_those_of_the_table(room):
    """Imports in functions and for type checkers count: they tell a reader as much as others do."""
    allowed = {
        f"{room}/{place} -> {room}/{target}"
        for place, targets in ARROWS[room].items()
        for target in (ARROWS[room] if targets == "*" else targets.split())
    }
    arrows = {
        f"{place} -> {target}"
        for place, targets in house.folder_arrows().items()
        for target in targets
        if place.split("/")[0] == target.split("/")[0] == room
    }
    only_what_is_listed(f"arrows in {room}/", arrows - allowed)


@pytest.mark.parametrize("room", ROOMS)
def test_the_table_of_arrows_names_every_place(room):
    places = {place.removeprefix(f"{room}/") for place in house.folder_arrows() if place.split("/")[0] == room}
    assert places == set(ARROWS[room])


@pytest.mark.parametrize("arrows", [house.folder_arrows, house.file_arrows], ids=["folders", "files"])
def test_no_imports_in_a_circle(arrows):
    """Between files, imports for type checkers alone do not count: the running program does not make them."""
    assert not house.circle(arrows())


def test_circles_are_found():
    assert house.circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert house.circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_are_resolved_to_files():
    imports = {file.name: {each.target for each in file.imports} for file in house.source_files()}
    assert "engine/config/command_line.py" in imports["engine/train.py"]
    assert "engine/training/job.py" in imports["engine/train.py"]  # in a function, and as a name of its folder


@pytest.mark.parametrize("room", ROOMS)
def test_floors_of_a_room(room):
    assert max(house.floors(room).values()) <= 7


def test_files_of_a_folder():
    counts = house.files_by_folder()
    assert statistics.median(counts.values()) <= 8
    only_what_is_listed("files of a folder", {folder for folder, count in counts.items() if count > 20})


def test_lines_of_a_file():
    only_what_is_listed("lines of a file", {file.name for file in house.source_files() if file.num_lines > 400})


def test_lines_of_a_function():
    """But for kernels/, where a Triton kernel is one function."""
    long = {each.name for each in house.functions() if each.num_lines > 60 and not each.file.startswith("kernels/")}
    only_what_is_listed("lines of a function", long)


def test_modules_that_a_file_of_training_imports_from():
    files = {file.name for file in house.source_files() if file.node == "engine/training"}
    many = {file.name for file in house.source_files() if file.name in files and house.num_imported_modules(file) > 20}
    assert files
    only_what_is_listed("modules that a file of training/ imports from", many)


def test_one_name_stands_for_one_thing():
    twice = {name for name, files in house.public_names().items() if len(files) > 1}
    only_what_is_listed("one name, one thing", twice - set(POLYMORPHIC))


@pytest.mark.parametrize("path", TRACKED, ids=name_of)
def test_rooms_are_imported_by_their_full_name(path):
    bare = {module.split(".")[0] for module in imported_modules(path)} & set(ROOMS)
    assert not bare, f"write rlpheads.{min(bare)}"


def test_rooms_are_no_regular_packages():
    present = [name_of(path) for path in SOURCES if path.name == "__init__.py"]
    assert not present, "with an __init__.py the folder would shadow Hugging Face's kernels package"


def test_no_file_bears_the_name_of_a_library():
    """Torchrun puts engine/ first on sys.path, so that engine/profile.py would be everybody's `profile`.

    A folder without an __init__.py hides no installed library, wherever it is; a file does, where it is put on sys.path.
    """
    libraries = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions()}
    clashes = {path.stem for room in ROOMS for path in (ROOT / room).glob("*.py")} & (libraries - {"rlpheads"})
    assert not clashes


def test_tests_import_nothing_of_each_other():
    """What several tests share lies in tests/helpers; files of one name, in two rooms, are then no trouble."""
    tests = [path for path in OUTSIDE if path.is_relative_to(ROOT / "tests")]
    names = {path.stem for path in tests if path.stem.startswith("test_")} | {"conftest"}
    sharing = {name_of(path) for path in tests if {module.split(".")[0] for module in imported_modules(path)} & names}
    assert not sharing


def test_setup_imports_no_torch():
    assert {module.split(".")[0] for module in imported_modules(ROOT / "setup.py")} == {"setuptools"}


def test_git_ignores_no_source():
    """An unanchored `runs/` in .gitignore hides engine/runs/ from git, and from ruff."""
    names = "\n".join(name_of(path) for path in TRACKED)
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"], cwd=ROOT, input=names, capture_output=True, text=True
    )
    assert ignored.returncode == 1, ignored.stdout + ignored.stderr


STEP_FILES = [file for file in house.source_files() if str(Path(file.name).parent) in STEP_FOLDERS]


@pytest.mark.parametrize("file", STEP_FILES, ids=lambda file: file.name)
def test_the_step_reads_nothing_on_the_host(file):
    calls = {
        node.func.attr
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    if file.name in MAY_READ:
        assert HOST_READS & calls, f"{file.name} reads nothing on the host: delete it from MAY_READ"
    else:
        assert not HOST_READS & calls


def test_folders_of_the_step_are_there():
    assert {str(Path(file.name).parent) for file in STEP_FILES} == set(STEP_FOLDERS)
    assert set(MAY_READ) <= {file.name for file in STEP_FILES}


def test_ruff_forbids_what_these_tests_forbid():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(settings["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]) == set(ROOMS)
