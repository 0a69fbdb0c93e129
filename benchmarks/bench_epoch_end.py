"""What an epoch's end costs at ImageNet's size: accuracy, bits and margins of every tap from the ledger of a phase.

python benchmarks/bench_epoch_end.py           # 1.28 million images, 12 taps, 7 rounds: a minute
python benchmarks/bench_epoch_end.py --quick   # a tenth of the images, 3 rounds

Rounds alternate between the figures as they are made (quantiles by a partition) and the same with a full sort in place of it,
in processor seconds. The bound is reading each column once, at the rate at which this machine copies.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from measuring import Results, interleave, ratio, ratio_interval
from torch import Tensor

from rlpheads.memorization import quantiles
from rlpheads.memorization.quantiles import MARGIN_LEVELS
from rlpheads.memorization.records.ledger import Ledger

IMAGES, TAPS = 1_281_167, 12
ASKED = 0.55


def filled(num_images: int) -> Ledger:
    """Return a ledger in which every image of a phase is recorded."""
    ledger = Ledger(num_images, TAPS, 1, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    shape = (TAPS, 1, num_images)
    margins = torch.randn(shape, generator=generator)
    ledger.record(
        torch.arange(num_images),
        torch.randint(1000, (num_images,), generator=generator),
        torch.rand(num_images, generator=generator),
        torch.rand(num_images, generator=generator) < 0.7,
        margins > 0,
        torch.randn(shape, generator=generator),
        margins,
    )
    return ledger


def figures(ledger: Ledger) -> list[Tensor]:
    """Return what an epoch's row says of a phase."""
    levels = tuple(MARGIN_LEVELS.values())
    return [ledger.label_accuracy_TM, ledger.label_bits_TM, ledger.label_margins_QTM(levels)]


def by_sorting(values_N: Tensor, ranks: list[int]) -> Tensor:
    """Return order statistics from all values in order."""
    return values_N.sort(-1).values[..., ranks]


def measure(num_images: int, rounds: int) -> dict[str, Any]:
    """Time the figures of a phase both ways, and one copy of what they read."""
    ledger = filled(num_images)
    columns = [ledger.tensors()[name] for name in ("hit", "bits", "margin")]
    copies = [torch.empty_like(column) for column in columns]

    def sorted_figures() -> list[Tensor]:
        with mock.patch.object(quantiles, "_order_statistics", by_sorting):
            return figures(ledger)

    for ours, theirs in zip(figures(ledger), sorted_figures(), strict=True):
        assert torch.equal(ours, theirs)

    def copy() -> None:
        for column, there in zip(columns, copies, strict=True):
            there.copy_(column)

    contenders = {"ours": lambda: figures(ledger), "sort": sorted_figures, "copy": copy}
    return {"cpu_seconds": interleave(contenders, rounds, clock=time.process_time)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, 3 rounds")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    num_images, rounds = (IMAGES // 10, 3) if arguments.quick else (IMAGES, 7)
    results = Results("epoch_end", "cpu", arguments.out)
    found = results.measure(lambda: measure(num_images, rounds), images=num_images, taps=TAPS, rounds=rounds)
    ours, theirs, copy = (found["cpu_seconds"][name] for name in ("ours", "sort", "copy"))
    low, high = ratio_interval(ours, theirs)
    text = (
        f"{num_images:,} images x {TAPS} taps, a phase: {median(ours):.2f} CPU seconds, with a full sort {median(theirs):.2f}: "
        f"{ratio(ours, theirs):.2f} [{low:.2f}, {high:.2f}] of it, asked at most {ASKED}; "
        f"reading the columns once, at the rate of a copy: {median(copy):.3f}\n"
    )
    print(text, end="")
    results.write("figures.txt", text)


if __name__ == "__main__":
    main()
