"""From the command to the first step: processor time and wall time of a start, beside the imports that no start can do without.

python benchmarks/bench_startup.py              # 7 rounds: a few minutes on two quiet cores
python benchmarks/bench_startup.py --rounds 1   # does it run?
python benchmarks/bench_startup.py --tree 1281167 --rounds 1   # the scan of a tree alone: some minutes, 1.3 million inodes
python benchmarks/bench_startup.py --device cuda

The digits are trained from `configs/digits_vit.yaml`, and the process ends when its first optimizer step was taken. It is
started by plain python and by torchrun, in turns with `python -c 'import torch, timm'`. A command's processor time is that of
all its processes, threads that wait for one another included: where others use the cores, set OMP_NUM_THREADS=1. The first
round fills caches and does not count.

`--tree N` makes a tree of N empty files in 1,000 folders below $TMPDIR instead, and lists it in new processes, in turns: by a
scan; by what a start before kept in the cache; and by what a run keeps, where the cache is empty, as for a job that is requeued
on another node. What the file system knows of the tree is in memory each time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from measuring import Results, in_fresh_process, ratio, ratio_interval

from rlpheads.loaders.contract.listing import listing_path
from rlpheads.loaders.sources.image_folder import scan_splits
from rlpheads.loaders.sources.kept_listing import facts_path
from rlpheads.loaders.sources.scan_cache import ScanCache

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
    if self.run.launch.device.type == "cuda":
        import torch
        torch.cuda.synchronize()
    os._exit(0)
Training.train_on = first_step
raise SystemExit(train.main())
"""
"""A program that starts a run as engine/train.py does, and ends with the first step."""


SCAN, SECOND, REQUEUED = "scan", "second start", "requeued on a node with an empty cache"
_CLASSES = 1000


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


def commands(folder: Path, device: str) -> dict[str, list[str]]:
    """Return what is started, by name; every start of a run deletes what the one before has written."""
    program = folder / "first_step.py"
    program.write_text(FIRST_STEP)
    config = str(ROOT / "configs" / "digits_vit.yaml")
    run = [str(program), "--config", config, "--device", device, "--data.workers", "0"]
    run += ["--run.dir", str(folder), "--run.name", "started", "--run.overwrite", "true"]
    return {
        IMPORTS: [sys.executable, "-c", "import torch, timm"],
        "plain python": [sys.executable, *run],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", *run],
    }


def measure(rounds: int, device: str) -> dict[str, Any]:
    """Time all starts in turns; round r begins with the r-th."""
    with tempfile.TemporaryDirectory() as folder:
        starts = commands(Path(folder), device)
        names, costs = list(starts), {name: list[Cost]() for name in starts}
        for number in range(-1, rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                cost = time_command(starts[name], Path(folder))
                if number >= 0:
                    costs[name].append(cost)
    return {"seconds": {name: [each._asdict() for each in found] for name, found in costs.items()}}


def make_tree(root: Path, num_files: int) -> None:
    """Make a folder of empty files, in as many classes as ImageNet has."""
    for label in range(_CLASSES):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(label, num_files, _CLASSES):
            os.close(os.open(folder / f"{folder.name}_{number}.JPEG", os.O_CREAT | os.O_WRONLY))


def time_listing(root: Path, cache: ScanCache) -> Cost:
    """Time how a start gets the listing of a tree, in this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    scan_splits(root, cache)
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def measure_tree(num_files: int, rounds: int) -> dict[str, Any]:
    """Time the listing of a tree of so many files in all ways, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        root, kept, run = (Path(folder) / name for name in ("tree", "cache", "run"))
        make_tree(root, num_files)
        time.sleep(2 * ScanCache.settled_ns / 1e9)  # a tree that has just changed is not kept
        scan_splits(root, ScanCache(kept))
        (listing,) = kept.glob("*.npz")
        run.mkdir()
        shutil.copy(listing, listing_path(run, "train"))
        shutil.copy(facts_path(listing), facts_path(listing_path(run, "train")))
        starts = {
            SCAN: ScanCache(Path(folder) / "other", rescan=True),
            SECOND: ScanCache(kept),
            REQUEUED: ScanCache(Path(folder) / "empty", run_listing=run),
        }
        costs = {name: list[Cost]() for name in starts}
        for _ in range(rounds):
            for name, cache in starts.items():
                costs[name].append(in_fresh_process(time_listing, root, cache))
    return {"seconds": {name: [each._asdict() for each in found] for name, found in costs.items()}}


def tree_lines(seconds: Mapping[str, list[dict[str, float]]]) -> list[str]:
    """Return in words what listing a tree costs."""
    found = []
    for name, costs in seconds.items():
        cpu, wall = (median(each[kind] for each in costs) for kind in ("cpu", "wall"))
        found.append(f"{name}: {wall:.2f} s by the clock, {cpu:.2f} CPU seconds")
    return [*found, "asked of 1.28 million files: a second start at most 1 s"]


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
    parser.add_argument("--tree", type=int, metavar="N", help="list a tree of N empty files instead (10,000 at least)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    if arguments.tree is None:
        results = Results("startup", arguments.device, arguments.out)
        found = results.measure(lambda: measure(arguments.rounds, arguments.device), rounds=arguments.rounds)
        text = "\n".join(lines(found["seconds"])) + "\n"
    else:
        results = Results("startup_tree", "cpu", arguments.out)
        tree = {"tree": arguments.tree, "rounds": arguments.rounds}
        found = results.measure(lambda: measure_tree(arguments.tree, arguments.rounds), **tree)
        text = "\n".join(tree_lines(found["seconds"])) + "\n"
    print(text, end="")
    results.write("figures.txt", text)


if __name__ == "__main__":
    main()
