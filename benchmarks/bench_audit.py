"""What an audit's probe costs at ImageNet's size: time and memory of a least-squares fit, features streamed.

python benchmarks/bench_audit.py            # 160,000 and 1,281,167 rows, D = 768, K = 1,000, one own and four fresh draws
python benchmarks/bench_audit.py --quick    # 10,000 and 80,000 rows of D = 256, K = 100: half a minute on two cores

Each size is fitted in a fresh process, to Gaussian features that are made block by block and never held. The memory is what
the fit adds to the process at its peak; the labels, which are held, are 4·N bytes a draw of it. Goes on where it broke off.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from measuring import Results, in_fresh_process, peak_extra_bytes
from rich.console import Console
from rich.table import Table

from rlpheads.memorization.heads.labels import label_table
from rlpheads.memorization.probes.feature_blocks import GaussianFeatures
from rlpheads.memorization.probes.probe_heads import LeastSquaresProbe

NUM_DRAWS = 5


class Sizes(NamedTuple):
    """Of the problems: numbers of rows N, width of the features D, number of labels K."""

    rows: tuple[int, ...]
    dim: int
    num_labels: int


FULL = Sizes((160_000, 1_281_167), dim=768, num_labels=1000)
QUICK = Sizes((10_000, 80_000), dim=256, num_labels=100)


def fit(rows: int, dim: int, num_labels: int) -> dict[str, Any]:
    """Fit once; return seconds, MiB at the peak beyond the start, and the accuracy beside the closed form's."""
    found: dict[str, Any] = {}

    def call() -> None:
        labels_MN = label_table(rows, num_labels, num_draws=NUM_DRAWS, seed=0, split="train")
        probe, start = LeastSquaresProbe(), time.perf_counter()
        accuracy = float(probe(GaussianFeatures(rows, dim), labels_MN, num_labels).accuracy_M.mean())
        found["seconds"] = time.perf_counter() - start
        found["accuracy"], found["closed_form"] = accuracy, probe.control(labels_MN, dim, num_labels)

    found["peak_mib"] = peak_extra_bytes(call) / 2**20
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else FULL
    results = Results("audit", "cpu", arguments.out)
    table = Table("rows", "D", "K", "features, MiB", "peak, MiB", "s", "accuracy", "closed form", title="least squares")
    for rows in sizes.rows:
        case = {"rows": rows, "dim": sizes.dim, "num_labels": sizes.num_labels}
        line = results.measure(partial(in_fresh_process, fit, *case.values()), **case)
        numbers = [f"{4 * rows * case['dim'] / 2**20:.0f}", f"{line['peak_mib']:.0f}", f"{line['seconds']:.1f}"]
        accuracies = [f"{line[name]:.4f}" for name in ("accuracy", "closed_form")]
        table.add_row(*map(str, case.values()), *numbers, *accuracies)
    console = Console(record=True, width=100)
    console.print(table)
    results.write("table.txt", console.export_text())


if __name__ == "__main__":
    main()
