"""How the training rate grows with the ranks: whole runs at 1, 2 and 4 ranks, read from what they record themselves.

python benchmarks/bench_scaling.py                     # a small ViT on synthetic images, 3 rounds: some minutes on two cores
python benchmarks/bench_scaling.py --quick             # few steps, one round
python benchmarks/bench_scaling.py --device cuda       # ViT-B of 64 patches in bf16, a GPU each; --ranks 1 8
python benchmarks/bench_scaling.py --settings          # print the settings, for launch/slurm.sbatch
python benchmarks/bench_scaling.py --read RUN RUN ...  # the same table from runs that are done, such as Slurm's

Each rank has the same number of images a step (weak scaling), and as many threads as its share of the cores. A rate is
`images_per_second` of a run's last epoch: training alone, without start, evaluation and checkpoints. Beside it the bound by
arithmetic: ranks that share cores gain nothing from being more. On a cluster:

    settings=$(python benchmarks/bench_scaling.py --device cuda --settings 16)
    RUN=/shared/scaling_16 sbatch --nodes 2 --gpus-per-node 8 launch/slurm.sbatch $settings
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from measuring import Results

RANKS = (1, 2, 4)


class Size(NamedTuple):
    """What a rank works at: features and attention heads of its ViT, images of its step, its loader's workers, precision."""

    width: int
    num_heads: int
    rows: int
    workers: int
    precision: str


SIZES = {"cpu": Size(192, 3, 16, 0, "fp32"), "cuda": Size(768, 12, 256, 4, "bf16")}


def settings(ranks: int, steps: int, size: Size = SIZES["cpu"]) -> list[str]:
    """Return the settings of a run, without its folder and device."""
    model = {"img_size": 64, "patch_size": 8, "embed_dim": size.width, "depth": 12, "num_heads": size.num_heads}
    flags = {
        "config": "configs/digits_vit.yaml",
        "epochs": 2,
        "batch_size": size.rows * ranks,
        "precision": size.precision,
        "log_every": max(steps // 2, 1),
        "data.dataset": "synthetic",
        "data.val_fraction": "null",
        "data.image_size": 64,
        "data.synthetic.train": size.rows * ranks * steps,
        "data.synthetic.val": 64,
        "data.workers": size.workers,
        "eval.every": 2,
        "eval.clean_every": 0,
        "eval.overhead": "false",
        "log.tensorboard": "false",
        **{f"model.args.{name}": value for name, value in model.items()},
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def train(ranks: int, steps: int, folder: Path, name: str, device: str) -> None:
    """Run to the end; threads share the cores that this process may use."""
    threads = max(len(os.sched_getaffinity(0)) // ranks, 1)
    command = [sys.executable, "-m", "rlpheads.engine.cli", "train", "--nproc-per-node", str(ranks)]
    command += [
        *settings(ranks, steps, SIZES[device]),
        "--device",
        device,
        "--run.dir",
        str(folder),
        "--run.name",
        name,
    ]
    surroundings = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")


def read(run: Path) -> dict[str, Any]:
    """Return the rate of a run's last epoch, its ranks, and what its slowest rank took."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs, windows = ([row for row in rows if row["kind"] == kind] for kind in ("epoch", "step"))
    last = epochs[-1]
    ranks = round(last["device_seconds"] / last["seconds"])
    return {"ranks": ranks, "rate": last["images_per_second"], "slowest": windows[-1].get("slowest_rank_seconds")}


def measure(rounds: int, steps: int, numbers_of_ranks: Sequence[int], device: str) -> dict[str, Any]:
    """Run every number of ranks once a round."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for ranks in numbers_of_ranks:
                name = f"{number}_{ranks}"
                train(ranks, steps, Path(folder), name, device)
                found.append(read(Path(folder) / name))
    return {"runs": found}


def lines(runs: Sequence[dict[str, Any]], cores: int | None) -> list[str]:
    """Return the rate by number of ranks, over that of the fewest; `cores`: those that all share, if they do."""
    by_ranks = {
        ranks: [run["rate"] for run in runs if run["ranks"] == ranks] for ranks in {run["ranks"] for run in runs}
    }
    fewest = min(by_ranks)
    base = median(by_ranks[fewest])
    said = []
    for ranks, rates in sorted(by_ranks.items()):
        growth, least, most = (rate / base for rate in (median(rates), min(rates), max(rates)))
        bound = ranks / fewest if cores is None else min(ranks, cores) / min(fewest, cores)
        said.append(
            f"{ranks} ranks: {median(rates):.1f} img/s, {growth:.2f} [{least:.2f}, {most:.2f}] times {fewest}'s; "
            f"at most {bound:.2f} by the devices"
        )
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 steps an epoch, one round")
    parser.add_argument(
        "--settings", type=int, nargs="?", const=1, metavar="RANKS", help="print a run's settings, and end"
    )
    parser.add_argument("--read", type=Path, nargs="+", metavar="RUN", help="folders of runs that are done")
    parser.add_argument(
        "--device", choices=tuple(SIZES), default="cpu", help="which also says how much a rank works at"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, help="numbers of ranks (1 2 4)")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    rounds, steps = (1, 10) if arguments.quick else (3, 60)
    if arguments.settings:
        print(" ".join(settings(arguments.settings, steps, SIZES[arguments.device])))
        return
    results = Results("scaling", arguments.device, arguments.out)
    if arguments.read:
        found = [read(run) for run in arguments.read]
    else:
        call = partial(measure, rounds, steps, arguments.ranks, arguments.device)
        rows = SIZES[arguments.device].rows
        found = results.measure(call, rounds=rounds, steps=steps, rows=rows, ranks=arguments.ranks)["runs"]
    shares_cores = arguments.device == "cpu" and not arguments.read
    cores = len(os.sched_getaffinity(0)) if shares_cores else None
    text = "\n".join(lines(found, cores)) + "\n"
    print(text, end="")
    results.write("figures.txt", text)


if __name__ == "__main__":
    main()
