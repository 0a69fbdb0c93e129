"""The loss's benchmark runs as its command, writes what it found, and goes on where it stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "bench_random_label_loss.py"


def run(folder: Path, *options: str) -> str:
    command = [sys.executable, str(BENCHMARK), "--threads", "1", "--rounds", "1", "--out", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_measures_every_contender_once(tmp_path: Path) -> None:
    run(tmp_path, "--rows", "16", "--labels", "300")
    first = (tmp_path / "runs.jsonl").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    single = {row["contender"]: row for row in summary if "heads" not in row}
    assert {"ours", "ours, slabs", "ours, reference", "two losses, eager", "two losses, compiled"} <= single.keys()
    assert sum(name.startswith("F.linear_cross_entropy") for name in single) == 5
    assert all(row["seconds"] > 0 and row["ratio_to_floor"] > 0 for row in summary)
    assert all(single[name]["errors"]["features"] < 1e-5 for name in ("ours", "ours, slabs", "two losses, compiled"))
    assert not single["F.linear_cross_entropy"]["both_routes"]
    assert single["ours, slabs"]["extra_bytes"] < 16e6
    assert "12 heads in one call" in (tmp_path / "table.txt").read_text()
    run(tmp_path, "--rows", "16", "--labels", "300")
    assert (tmp_path / "runs.jsonl").read_text() == first
