"""Benchmark of the loss at few labels on a CPU: what a step of one or twelve heads costs against plain linear layers.

python benchmarks/bench_few_labels.py           every case (two minutes on two quiet cores)
python benchmarks/bench_few_labels.py --quick   a few rounds of each (ten seconds)

`measuring`: cross-entropy forward and backward into weights and biases, with hit and bits of every row, against
`F.linear` and `F.cross_entropy` alone. `uniform`: both gradient routes, against two eager losses. Contenders take turns; the
ratio is the median over the rounds of ours over theirs. Results go to benchmarks/results/few_labels_DEVICE_DATE.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from measuring import Results, interleave, ratio
from rich.console import Console
from rich.table import Table

from rlpheads.kernels.random_label_loss import random_label_losses

NUM_FEATURES = 768
CASES = (
    *(("measuring", heads, rows, labels) for heads in (1, 12) for labels in (10, 100) for rows in (64, 128)),
    *(("uniform", 1, rows, labels) for labels in (10, 1000) for rows in (64, 128, 256, 512, 1024)),
)
TARGETS = {
    ("measuring", 1, 10): 1.5,
    ("measuring", 12, 10): 0.6,
    ("measuring", 12, 100): 1.0,
    ("uniform", 1, 1000): 0.85,
}
"""Ratio to stay within, by kind, heads and labels."""


def steps(kind: str, num_heads: int, num_rows: int, num_labels: int) -> dict[str, Callable[[], None]]:
    """Our step and theirs, each from cleared gradients to cleared gradients."""
    torch.manual_seed(0)
    features = [torch.randn(num_rows, NUM_FEATURES, requires_grad=kind == "uniform") for _ in range(num_heads)]
    weights = [(torch.randn(num_labels, NUM_FEATURES) / NUM_FEATURES**0.5).requires_grad_() for _ in features]
    biases = [torch.zeros(num_labels, requires_grad=True) for _ in features]
    labels = [torch.randint(num_labels, (num_rows,)) for _ in features]

    def step(loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            loss().backward()
            for tensor in (*weights, *biases, *features):
                tensor.grad = None

        return run

    def ours() -> torch.Tensor:
        regularizer = "uniform" if kind == "uniform" else None
        found = random_label_losses(features, weights, labels, biases=biases, regularizer=regularizer)
        own, other_HB = found.cross_entropy_HB.mean(), found.regularizer_HB
        return own if other_HB is None else own + other_HB.mean()

    def plain() -> torch.Tensor:
        of_heads = zip(features, weights, biases, labels, strict=True)
        each = [F.cross_entropy(F.linear(x_BD, w_KD, b_K), y_B) for x_BD, w_KD, b_K, y_B in of_heads]
        return torch.stack(each).mean() if len(each) > 1 else each[0]

    def two_losses() -> torch.Tensor:
        x_BD, w_KD, b_K, y_B = features[0], weights[0], biases[0], labels[0]
        cross_entropy = F.cross_entropy(F.linear(x_BD.detach(), w_KD, b_K), y_B)
        log_p_BK = F.log_softmax(F.linear(x_BD, w_KD.detach(), b_K.detach()), 1)
        return cross_entropy - log_p_BK.mean(1).mean()

    return {"ours": step(ours), "theirs": step(plain if kind == "measuring" else two_losses)}


def measure(case: tuple[str, int, int, int], rounds: int) -> dict[str, Any]:
    """Seconds of both in every round; fewer rounds where a step takes longer."""
    return {"seconds": interleave(steps(*case), max(rounds // (1 + case[2] * case[3] // 2**15), 5), warmup=5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 rounds of each case; default: 400")
    parser.add_argument("--threads", type=int, help="torch's threads; default: its own choice")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results, rounds = Results("few_labels", "cpu", arguments.out), 20 if arguments.quick else 400
    table = Table(
        title=f"few labels, D={NUM_FEATURES}, float32, {torch.get_num_threads()} threads", title_justify="left"
    )
    for heading in ("step", "heads", "B", "K", "ours ms", "theirs ms", "ours ÷ theirs", "asked"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for case in CASES:
        kind, heads, rows, labels = case
        names = {"kind": kind, "heads": heads, "rows": rows, "labels": labels, "rounds": rounds}
        line = results.measure(partial(measure, case, rounds), **names, threads=torch.get_num_threads())
        ours, theirs = line["seconds"]["ours"], line["seconds"]["theirs"]
        asked = TARGETS.get((kind, heads, labels))
        table.add_row(
            *(kind, str(heads), str(rows), f"{labels:,}", f"{1e3 * median(ours):.3f}", f"{1e3 * median(theirs):.3f}"),
            *(f"{ratio(ours, theirs):.2f}", "" if asked is None else f"≤ {asked}"),
        )
    console = Console(record=True, width=120)
    console.print(table)
    results.write("table.txt", console.export_text())
    console.print(f"Everything is in {results.folder}")


if __name__ == "__main__":
    main()
