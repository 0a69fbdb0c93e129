"""What a first GPU is asked: parts that cannot run say why, and one that hangs ends with all its processes."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import bench_gpu
import psutil
import pytest
from bench_gpu import PARTS, Part, Setting
from lean_python import python_with

ROOT = Path(__file__).parents[2]


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting("cpu", 1, tmp_path)


def test_what_is_missing_is_said_by_name(setting: Setting) -> None:
    def words(_: Setting) -> str:
        raise AssertionError("was run")

    on_gpu = Setting("cuda", 1, setting.folder)
    for part, where, said in (
        (Part("a", words, ("no_such_module", "torch")), setting, "not installed: no_such_module"),
        (Part("a", words, tools=("no-such-tool",)), setting, "not installed: no-such-tool"),
        (Part("a", words, gpu_only="its memory"), setting, "needs a GPU: its memory"),
        (Part("a", words, ranks=2), on_gpu, "needs 2 ranks: RANKS=2"),
    ):
        assert bench_gpu.run(part, where, 100).state == said
    assert bench_gpu.run(Part("a", words), setting, 4).state == "no time left"


def test_a_part_that_hangs_ends_with_its_processes(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "LEAST_S", 0.0)
    script = setting.folder / "hangs.py"
    script.write_text("import subprocess, sys\nprint('begun', flush=True)\nsubprocess.run(['sleep', '971'])\n")
    outcome = bench_gpu.run(Part("hangs", lambda _: str(script)), setting, 1)
    assert outcome.state.startswith("failed: not done after")
    assert outcome.last_lines == ["begun"]
    assert not [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", "971"]]


def test_the_command_writes_json_and_a_table(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/bench_gpu.py"), "--device", "cpu", "--only", "tests", "--out"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "parts.json").read_text())[0]["state"] == "needs a GPU: kernels of a GPU"
    assert "| tests, loss | needs a GPU: kernels of a GPU | 0 |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, id=part.name, marks=pytest.mark.long if "memcheck" in part.name else pytest.mark.slow)
        for part in PARTS
        if "pytest" in part.modules
    ],
)
def test_a_part_with_tests_has_some_where_only_what_it_names_is_installed(part: Part, setting: Setting) -> None:
    python = python_with(part.modules, setting.folder / "python")
    words = part.words(setting).split()
    command = [str(python), *words[words.index("-m") :], "--collect-only"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "::test_" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", [part for part in PARTS if not part.gpu_only and part.ranks == 1], ids=lambda part: part.name
)
def test_a_part_runs_where_only_what_it_names_is_installed(
    part: Part, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither rlpheads itself, nor anything else that it requires."""
    monkeypatch.setattr(bench_gpu, "PYTHON", str(python_with(part.modules, setting.folder / "python")))
    outcome = bench_gpu.run(part, setting, 500)
    assert outcome.state == "ok", outcome.last_lines


@pytest.mark.parametrize("target", ["bench-gpu", "test-gpu"])
def test_with_a_python_that_is_there_nothing_is_installed(target: str) -> None:
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", target]
    # what `make test ARGS=-x` was given is not for this one
    variables = {
        name: value for name, value in os.environ.items() if "MAKE" not in name and name not in ("ARGS", "MFLAGS")
    }
    asked = [
        subprocess.run([*command, *more], cwd=ROOT, env=variables, capture_output=True, text=True, check=True).stdout
        for more in ([], ["PYTHON_OF=python9"])
    ]
    assert "pip" in asked[0]
    assert re.fullmatch(r"python9 (benchmarks/bench_gpu\.py|-m pytest [^\n]*tests/gpu) *\n", asked[1])


def test_a_module_in_a_package_that_others_share_is_looked_for_itself() -> None:
    assert bench_gpu.is_importable("importlib.metadata")
    assert not bench_gpu.is_importable("importlib.no_such_module")
    assert not bench_gpu.is_importable("no_such_package.module")


def test_every_part_names_files_and_configs_that_exist(tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        for part in PARTS:
            words = part.words(Setting(device, 2, tmp_path)).split()
            named = [word for word in words if word.partition("::")[0].endswith((".py", ".yaml"))]
            assert all((ROOT / word.partition("::")[0]).exists() for word in named), words
    assert len({part.name for part in PARTS}) == len(PARTS)


def test_parts_share_ten_minutes(setting: Setting) -> None:
    """What is said of each part is what it has at least, on one GPU; what cannot run leaves its share to the others."""
    assert sum(part.share_s for part in PARTS if part.ranks == 1) <= 600

    def words(_: Setting) -> str:
        return ""

    parts = [Part("a", words, share_s=10), Part("b", words, gpu_only="one", share_s=50), Part("c", words, share_s=30)]
    assert bench_gpu.shares(parts, setting, 400) == {"a": 100, "b": 100, "c": 400}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_options_of_every_benchmark_are_known(device: str, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their parsers read them; nothing is measured."""

    def stop(*_: object, **__: object) -> None:
        raise StopIteration

    for part in PARTS:
        script, *words = part.words(Setting(device, 2, setting.folder)).split()
        if not script.endswith(".py") or (part.gpu_only and device == "cpu"):
            continue
        module = importlib.import_module(Path(script).stem)

        monkeypatch.setattr(module, "Results", stop)
        monkeypatch.setattr("sys.argv", [script, *words])
        with pytest.raises(StopIteration):
            module.main()
