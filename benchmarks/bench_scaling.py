"""How the training rate grows with the ranks: whole runs at 1, 2 and 4 ranks, read from what they record themselves.

python benchmarks/bench_scaling.py                     # a small ViT on synthetic images, 3 rounds: some minutes on two cores
python benchmarks/bench_scaling.py --quick             # few steps, one round
python benchmarks/bench_scaling.py --settings          # print the settings, for launch/slurm.sbatch
python benchmarks/bench_scaling.py --read RUN RUN ...  # the same table from runs that are done, such as Slurm's

Each rank has the same number of images a step (weak scaling), and as many threads as its share of the cores. A rate is
`images_per_second` of a run's last epoch: training alone, without start, evaluation and checkpoints. Beside it the bound by
arithmetic: ranks that share cores gain nothing from being more. On a cluster:

    settings=$(python benchmarks/bench_scaling.py --settings 16)
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
from pathlib import Path
from statistics import median
from typing import Any

from measuring import Results

RANKS = (1, 2, 4)
ROWS = 16
"""Images of a rank's step."""


def settings(ranks: int, steps: int) -> list[str]:
    """Return the settings of a run, without its folder."""
    model = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 12, "num_heads": 3}
    flags = {
        "config": "configs/digits_vit.yaml",
        "epochs": 2,
        "batch_size": ROWS * ranks,
        "log_every": max(steps // 2, 1),
        "data.dataset": "synthetic",
        "data.val_fraction": "null",
        "data.image_size": 64,
        "data.synthetic.train": ROWS * ranks * steps,
        "data.synthetic.val": 64,
        "data.workers": 0,
        "eval.every": 2,
        "eval.clean_every": 0,
        "eval.overhead": "false",
        "log.tensorboard": "false",
        **{f"model.args.{name}": value for name, value in model.items()},
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def train(ranks: int, steps: int, folder: Path, name: str) -> None:
    """Run to the end; threads share the cores that this process may use."""
    threads = max(len(os.sched_getaffinity(0)) // ranks, 1)
    command = [sys.executable, "-m", "rlpheads.engine.cli", "train", "--nproc-per-node", str(ranks)]
    command += [*settings(ranks, steps), "--device", "cpu", "--run.dir", str(folder), "--run.name", name]
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


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """Run every number of ranks once a round."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for ranks in RANKS:
                name = f"{number}_{ranks}"
                train(ranks, steps, Path(folder), name)
                found.append(read(Path(folder) / name))
    return {"runs": found}


def lines(runs: Sequence[dict[str, Any]], cores: int | None) -> list[str]:
    """Return the rate by number of ranks, over that of the fewest; `cores`: those that all ranks share, None on a cluster."""
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
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    rounds, steps = (1, 10) if arguments.quick else (3, 60)
    if arguments.settings:
        print(" ".join(settings(arguments.settings, steps)))
        return
    results = Results("scaling", "cpu", arguments.out)
    if arguments.read:
        found = [read(run) for run in arguments.read]
    else:
        found = results.measure(lambda: measure(rounds, steps), rounds=rounds, steps=steps, rows=ROWS)["runs"]
    cores = None if arguments.read else len(os.sched_getaffinity(0))
    text = "\n".join(lines(found, cores)) + "\n"
    print(text, end="")
    results.write("figures.txt", text)


if __name__ == "__main__":
    main()
