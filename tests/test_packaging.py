"""A built wheel installs and imports outside the source tree, also beside Hugging Face's `kernels`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
ROOMS = ("engine", "loaders", "kernels", "memorization")
CODE = (".py", ".cpp", ".h")
REPORT = """
import sys, rlpheads
assert not {"torch", "numpy", "importlib.metadata"} & set(sys.modules)
assert rlpheads.__version__ and "torch" not in sys.modules
import json, kernels
import rlpheads.engine.config.schema, rlpheads.loaders.contract.order
import rlpheads.kernels.random_label_loss, rlpheads.memorization.heads.labels
from importlib.metadata import version
files = {"engine": rlpheads.engine.config.schema.__file__, "kernels": kernels.__file__}
assert rlpheads.label_table is rlpheads.memorization.heads.labels.label_table and "label_table" in dir(rlpheads)
print(json.dumps({**files, "version": version("rlpheads")}))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    import os

    env = {**os.environ, **environment}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built of the files alone: setuptools would put what an earlier build left in build/ into the wheel, too."""
    folder, tree = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("tree")
    for name in ("rlpheads", "configs", *ROOMS):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, tree, cwd=folder)
    (built,) = folder.glob("rlpheads-*.whl")
    return built


def test_wheel_imports_outside_the_source_tree_beside_hugging_face_kernels(wheel, tmp_path):
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", site, wheel, cwd=tmp_path)
    found = json.loads(run(sys.executable, "-c", REPORT, cwd=tmp_path, PYTHONPATH=str(site)))
    assert Path(found["engine"]).is_relative_to(site)
    assert "site-packages" in found["kernels"]


def test_installed_wheel_reads_its_configurations_by_name_from_any_folder(wheel, tmp_path):
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", site, wheel, cwd=tmp_path)
    code = (
        "import sys; from rlpheads.engine.config.command_line import parse_config\n"
        "names = [parse_config(argv).model.name for argv in (['--config', 'digits_vit'], [])]\n"
        "print(*names, sys.modules[parse_config.__module__].__file__)"
    )
    named, default, file = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site)).split()
    assert (named, default) == ("vit_tiny_patch16_224", "wrn_16_4")
    assert Path(file).is_relative_to(site)
    shipped = {path.name for path in (ROOT / "configs").iterdir()}
    assert {path.name for path in (site / "rlpheads" / "configs").iterdir()} == shipped


def test_source_tree_imports_beside_hugging_face_kernels():
    """Run in the root, where a folder called kernels is the first thing on sys.path."""
    found = json.loads(run(sys.executable, "-c", REPORT, cwd=ROOT))
    assert Path(found["engine"]).is_relative_to(ROOT)
    assert "site-packages" in found["kernels"]


def test_wheel_holds_every_source_of_the_rooms_and_the_console_script(wheel):
    import zipfile

    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        sources = {
            str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.*") if path.suffix in CODE
        }
        points = next(archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    tops = {name.split("/")[0] for name in names}
    assert tops == {"rlpheads", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    assert {name for name in names if Path(name).suffix in CODE} == {f"rlpheads/{name}" for name in sources} | {
        "rlpheads/__init__.py"
    }
    assert "rlpheads/py.typed" in names  # type checkers read the annotations of a package that says so
    assert "rlpheads = rlpheads.engine.cli:main" in points
