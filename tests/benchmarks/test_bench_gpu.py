"""What a first GPU is asked: parts that cannot run say why, and one that hangs ends with all its processes."""

import json
import subprocess
import sys
from pathlib import Path

import bench_gpu
import psutil
import pytest
from bench_gpu import PARTS, Part, Setting

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
        (Part("a", words, ranks=2), on_gpu, "needs 2 GPUs: RANKS=2"),
    ):
        assert bench_gpu.run(part, where, 100).state == said
    assert bench_gpu.run(Part("a", words), setting, 5).state == "no time left"


def test_a_part_that_hangs_ends_with_its_processes(setting: Setting) -> None:
    script = setting.folder / "hangs.py"
    script.write_text("import subprocess, sys\nprint('begun', flush=True)\nsubprocess.run(['sleep', '971'])\n")
    outcome = bench_gpu.run(Part("hangs", lambda _: str(script), limit_s=1), setting, 11)
    assert outcome.state.startswith("failed: not done after")
    assert outcome.last_lines == ["begun"]
    assert not [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", "971"]]


def test_the_command_writes_json_and_a_table(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/bench_gpu.py"), "--device", "cpu", "--only", "tests", "--out"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "parts.json").read_text())[0]["state"] == "needs a GPU: kernels of a GPU"
    assert "| tests, loss | needs a GPU: kernels of a GPU | 0 |" in (tmp_path / "table.md").read_text()


def test_every_part_names_files_and_configs_that_exist(tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        for part in PARTS:
            words = part.words(Setting(device, 2, tmp_path)).split()
            named = [word for word in words if word.endswith((".py", ".yaml"))]
            assert all((ROOT / word).exists() for word in named), words
    assert len({part.name for part in PARTS}) == len(PARTS)
