"""How fast images arrive: our loaders beside the libraries that they stand on, timm's and torchvision's.

python benchmarks/bench_loaders.py             # the figures that are asked for; up to ten minutes on two cores
python benchmarks/bench_loaders.py --all       # every contender, both image sizes, one and two workers, all tables
python benchmarks/bench_loaders.py --quick     # the same tables from few images, to see that everything runs
python benchmarks/bench_loaders.py --only float  # floats for floats: ours, timm's, torchvision's, SPDL's
python benchmarks/bench_loaders.py --host      # host time of order, index, labels and crops alone; a minute

The images are a deterministic JPEG tree cut from photographs (make_photo_tree.py): 500 x 375 pixels of 84 kB, as ImageNet
has them, and 341 x 256 for stores whose short side is 256. They are in the page cache: this measures decoding, not disks.
Each contender lives in a process of its own, all with the same number of workers; they take turns, one pass at a time, in
an order that rotates, and only one runs at any time. What is read: medians of passes, and medians of the ratios of passes
of one round. Every pass is kept, in benchmarks/results/loaders_DEVICE_DATE/; a second start goes on with what is missing.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from loader_contenders import CONTENDERS, Pass, Runner, Setting
from loader_costs import IMAGENET, host_costs, manifest_bytes
from measuring import Results, in_fresh_process
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
SIZES = {500: (500, 375), 256: (341, 256)}
ASKED = (
    "bare decode limit",
    "rlpheads torch",
    "rlpheads torch, float",
    "timm, float",
    "timm prefetcher, float",
    "torchvision v2, float",
    "SPDL threads, float",
    "rlpheads dali",
    "DALI external source",
    "DALI reader",
    "rlpheads ffcv jpg",
    "FFCV jpg",
    "rlpheads ffcv raw",
    "FFCV raw",
)
RATIOS = (
    ("rlpheads torch, float", "timm, float", 2.0),
    ("rlpheads torch, float", "timm prefetcher, float", 1.85),
    ("rlpheads torch, float", "torchvision v2, float", 1.4),
    ("rlpheads torch", "timm, float", 1.5),
    ("rlpheads ffcv jpg", "FFCV jpg", 0.97),
    ("rlpheads ffcv raw", "FFCV raw", 0.97),
    ("rlpheads dali", "DALI external source", 0.97),
    ("rlpheads dali", "DALI reader", 0.88),
)
"""Numerator, denominator, and what their quotient should be at least."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        contenders: Names of the loaders.
        sizes: Images' long or short side, a key of SIZES.
        workers: Numbers of workers.
        images: Training images of a tree.
        rounds: Passes of each contender that count; one before them does not.
        samples: Sizes of splits at which host time is measured.
        rows: Rows of a rank's batch at which it is.
        files: Files of the manifest whose memory is measured.
        file_workers: Numbers of workers at which it is.
    """

    contenders: tuple[str, ...]
    sizes: tuple[int, ...]
    workers: tuple[int, ...]
    images: int
    rounds: int
    samples: tuple[int, ...] = (10**4, 10**5, 10**6, 10**7)
    rows: tuple[int, ...] = (32, 64, 128, 256, 512)
    files: int = IMAGENET
    file_workers: tuple[int, ...] = (0, 2, 8)


def choose_plan(given: argparse.Namespace) -> Plan:
    """Translate the command line."""
    contenders, sizes, workers = (tuple(CONTENDERS), (500, 256), (1, 2)) if given.all else (ASKED, (500,), (2,))
    if given.only:
        contenders = tuple(name for name in contenders if any(part in name for part in given.only))
    if given.host:
        return Plan((), (), (), 0, 0, file_workers=())
    if given.quick:
        return Plan(contenders, sizes, workers, 192, 2, (10**4, 10**5), (32, 256), 100_000, (0, 2))
    return Plan(contenders, sizes, workers, given.images, given.rounds)


def make_inputs(folder: Path, size: int, images: int) -> tuple[Path, Path]:
    """Make the tree and, where FFCV is, its stores, unless they are there; return both folders."""
    width, height = SIZES[size]
    tree, stores = folder / f"tree_{size}_{images}", folder / f"stores_{size}_{images}"
    if not tree.exists():
        shape = ["--width", str(width), "--height", str(height), "--quality", "97"]
        counts = ["--train", str(images), "--val", "8"]
        subprocess.run([sys.executable, str(HERE / "make_photo_tree.py"), str(tree), *counts, *shape], check=True)
    for mode in ("jpg", "raw"):
        if not (stores / mode / "train.beton").exists():
            command = ["convert", "--data.root", str(tree), "--out", str(stores / mode), "--mode", mode]
            subprocess.run([sys.executable, "-m", "rlpheads.engine.cli", *command], check=False)
    return tree, stores


def compare(contenders: Sequence[str], setting: Setting, rounds: int) -> dict[str, Any]:
    """Let the contenders take turns; return every pass and the memory of each, or why it could not run."""
    runners, passes, memory, missing = {}, {}, {}, {}
    try:
        for name in contenders:
            runner = Runner(name, setting)
            runners[name] = runner
            try:
                passes[name] = [runner.run()]  # the first: start of the workers, caches, compilation
                memory[name] = runner.memory()
            except (RuntimeError, EOFError) as error:
                missing[name] = str(error) or "its process ended"
                runners.pop(name).close()
                passes.pop(name, None)
        names = list(runners)
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                passes[name].append(runners[name].run())
    finally:
        for runner in runners.values():
            runner.close()
    all_passes = {name: [asdict(each) for each in some] for name, some in passes.items()}
    return {"passes": all_passes, "pss_bytes": memory, "missing": missing}


def throughput_table(line: dict[str, Any]) -> Table:
    """Return the table of one comparison: medians, the first pass left out."""
    case = line["case"]
    table = Table(title=f"{case['size']}-pixel images, {case['workers']} worker(s), {case['rounds']} rounds")
    for heading in ("loader", "img/s", "least to most", "CPU ms/img", "PSS MB", "first batch s: 1st pass", "later"):
        table.add_column(heading, justify="left" if heading == "loader" else "right")
    for name, some in line["passes"].items():
        first, *later = [Pass(**each) for each in some]
        rates = [each.images_per_second for each in later]
        table.add_row(
            name,
            f"{median(rates):.0f}",
            f"{min(rates):.0f}–{max(rates):.0f}",
            f"{1e3 * median(each.cpu_seconds / each.images for each in later):.2f}",
            f"{line['pss_bytes'][name] / 2**20:.0f}",
            f"{first.first_batch:.2f}",
            f"{median(each.first_batch for each in later):.2f}",
        )
    for name, reason in line["missing"].items():
        table.add_row(name, "not here", reason[:60], *[""] * 4)
    return table


def ratio_table(line: dict[str, Any]) -> Table:
    """Return the quotients that are asked for: medians over the rounds."""
    table = Table(title=f"ratios at {line['case']['size']} pixels, {line['case']['workers']} worker(s)")
    for heading in ("ratio", "obtained", "least to most", "asked"):
        table.add_column(heading, justify="left" if heading == "ratio" else "right")
    for over, under, asked in RATIOS:
        if over in line["passes"] and under in line["passes"]:
            quotients = ratios(line["passes"], over, under)
            spread = f"{min(quotients):.2f}–{max(quotients):.2f}"
            table.add_row(f"{over} / {under}", f"{median(quotients):.2f}", spread, f"≥ {asked}")
    return table


def ratios(passes: dict[str, list[dict[str, Any]]], over: str, under: str) -> list[float]:
    """Return the quotient of two contenders' throughputs in every round that counts."""
    pairs = zip(passes[over][1:], passes[under][1:], strict=True)
    return [Pass(**first).images_per_second / Pass(**second).images_per_second for first, second in pairs]


def costs_table(lines: list[dict[str, Any]]) -> Table:
    """Return host time by number of samples and of rows."""
    table = Table(title="host time, µs a sample (asked: the sum ≤ 1)")
    headings = ("order", "index", "labels", "crops", "sum")
    for heading in ("samples", "rows", *headings, "to a worker"):
        table.add_column(heading, justify="right")
    for line in lines:
        costs = [f"{line[name]:.2f}" for name in (*headings, "worker")]
        table.add_row(f"{line['case']['samples']:,}", str(line["case"]["rows"]), *costs)
    return table


def memory_table(lines: list[dict[str, Any]]) -> Table:
    """Return the manifest's memory by number of workers."""
    table = Table(title="memory of the list of files, a rank with its workers (asked: ≤ 150 MB for 1.28 M)")
    for heading in ("files", "workers", "MB"):
        table.add_column(heading, justify="right")
    for line in lines:
        case = line["case"]
        table.add_row(f"{case['files']:,}", str(case["workers"]), f"{line['bytes'] / 1e6:.0f}")
    return table


def measure(plan: Plan, results: Results, inputs: Path) -> list[Table]:
    """Measure what is not measured yet; return the tables."""
    tables = []
    for size in plan.sizes:
        tree, stores = make_inputs(inputs, size, plan.images)
        for workers in plan.workers:
            batch_size = min(128, plan.images // 6 * 2)  # even, as mixing by pairs wants it
            setting = Setting(tree, stores, batch_size, workers)
            case = {"size": size, "workers": workers, "images": plan.images, "rounds": plan.rounds, "batch": batch_size}
            line = results.measure(
                partial(compare, plan.contenders, setting, plan.rounds),
                what="throughput",
                contenders=plan.contenders,
                **case,
            )
            tables += [throughput_table(line), ratio_table(line)]
    costs = [
        results.measure(partial(host_costs, n, rows, 5), what="host", samples=n, rows=rows)
        for n in plan.samples
        for rows in plan.rows
    ]
    memory = []
    for workers in plan.file_workers:

        def used(workers: int = workers) -> dict[str, int]:
            return {"bytes": in_fresh_process(manifest_bytes, plan.files, workers)}

        memory.append(results.measure(used, what="memory", files=plan.files, workers=workers))
    return [*tables, costs_table(costs), *([memory_table(memory)] if memory else [])]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every contender, size and number of workers")
    parser.add_argument("--quick", action="store_true", help="few images and rounds")
    parser.add_argument("--host", action="store_true", help="host time of order, index, labels and crops alone")
    parser.add_argument("--only", nargs="+", metavar="PART", help="contenders whose names contain one of these")
    parser.add_argument("--images", type=int, default=1024, help="training images of a tree (1024)")
    parser.add_argument("--rounds", type=int, default=5, help="passes of each contender (5)")
    parser.add_argument("--inputs", type=Path, default=HERE / "inputs", help="where trees and stores are made and kept")
    parser.add_argument("--out", type=Path, help="folder of the results, if not benchmarks/results/loaders_...")
    given = parser.parse_args()
    results = Results("loaders", "cpu", given.out)
    results.write("command.txt", shlex.join(["python", "benchmarks/bench_loaders.py", *sys.argv[1:]]) + "\n")
    tables = measure(choose_plan(given), results, given.inputs)
    console = Console(width=140, record=True)
    for table in tables:
        console.print(table)
    results.write("tables.txt", console.export_text())
    console.print(f"every pass is in {results.folder}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
