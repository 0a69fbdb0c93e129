"""From the command to the first step: processor time and wall time of a start, beside the imports that no start can do without.

python benchmarks/bench_startup.py              # 7 rounds: a few minutes on two quiet cores
python benchmarks/bench_startup.py --rounds 1   # does it run?

The digits are trained from `configs/digits_vit.yaml`, and the process ends when its first optimizer step was taken. It is
started by plain python and by torchrun, in turns with `python -c 'import torch, timm'`. A command's processor time is that of
all its processes, threads that wait for one another included: where others use the cores, set OMP_NUM_THREADS=1. The first
round fills caches and does not count.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from measuring import Results, ratio, ratio_interval

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = "python -c 'import torch, timm'"
FIRST_STEP = """
import os
from rlpheads.engine import train
from rlpheads.engine.distributed import host_memory
from rlpheads.engine.model import timm_loading
host_memory.keep_freed_memory()  # before torch loads, as a start does
with timm_loading.without_wandb():
    from rlpheads.engine.training.training import Training
whole = Training.train_on
def first_step(self, delivered):
    whole(self, delivered)
    os._exit(0)
Training.train_on = first_step
raise SystemExit(train.main())
"""
"""A program that starts a run as engine/train.py does, and ends with the first step."""


class Cost(NamedTuple):
    """Seconds of a command: of the processor, over all its processes, and of the clock."""

    cpu: float
    wall: float


def time_command(command: Sequence[str], folder: Path) -> Cost:
    """Run a command in a folder, which must succeed."""
    start = time.perf_counter()
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{(folder / 'output').read_text()}")
    return Cost(used.ru_utime + used.ru_stime, time.perf_counter() - start)


def commands(folder: Path) -> dict[str, list[str]]:
    """Return what is started, by name; every start of a run deletes what the one before has written."""
    program = folder / "first_step.py"
    program.write_text(FIRST_STEP)
    config = str(ROOT / "configs" / "digits_vit.yaml")
    run = [str(program), "--config", config, "--device", "cpu", "--data.workers", "0"]
    run += ["--run.dir", str(folder), "--run.name", "started", "--run.overwrite", "true"]
    return {
        IMPORTS: [sys.executable, "-c", "import torch, timm"],
        "plain python": [sys.executable, *run],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", *run],
    }


def measure(rounds: int) -> dict[str, Any]:
    """Time all starts in turns; round r begins with the r-th."""
    with tempfile.TemporaryDirectory() as folder:
        starts = commands(Path(folder))
        names, costs = list(starts), {name: list[Cost]() for name in starts}
        for number in range(-1, rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                cost = time_command(starts[name], Path(folder))
                if number >= 0:
                    costs[name].append(cost)
    return {"seconds": {name: [each._asdict() for each in found] for name, found in costs.items()}}


def lines(seconds: Mapping[str, list[dict[str, float]]]) -> list[str]:
    """Return the figures in words."""
    cpu = {name: [each["cpu"] for each in found] for name, found in seconds.items()}
    wall = {name: median(each["wall"] for each in found) for name, found in seconds.items()}
    found = []
    for name, times in cpu.items():
        over = ""
        if name != IMPORTS:
            low, high = ratio_interval(times, cpu[IMPORTS])
            over = f", {ratio(times, cpu[IMPORTS]):.2f} [{low:.2f}, {high:.2f}] times the imports"
        found.append(f"{name}: {median(times):.2f} CPU seconds{over}; {wall[name]:.2f} s by the clock")
    return [*found, "asked: by plain python at most 1.1 times the imports"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    results = Results("startup", "cpu", arguments.out)
    found = results.measure(lambda: measure(arguments.rounds), rounds=arguments.rounds)
    text = "\n".join(lines(found["seconds"])) + "\n"
    print(text, end="")
    results.write("figures.txt", text)


if __name__ == "__main__":
    main()
