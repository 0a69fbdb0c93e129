"""What an epoch's end costs at ImageNet's size: accuracy, bits and margins of every tap from the ledger of a phase.

python benchmarks/bench_epoch_end.py           # 1.28 million images, 12 taps, 7 rounds: a minute
python benchmarks/bench_epoch_end.py --quick   # a tenth of the images, 3 rounds
python benchmarks/bench_epoch_end.py --device cuda

Rounds alternate between the figures as they are made (quantiles by a partition) and the same with a full sort in place of it,
in processor seconds. The bound is reading each column once, at the rate at which this machine copies. On a GPU the ledger lies
there, seconds are those until the device is idle, and both ways sort.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
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


def filled(num_images: int, device: str) -> Ledger:
    """Return a ledger in which every image of a phase is recorded."""
    ledger = Ledger(num_images, TAPS, 1, torch.device(device))
    generator = torch.Generator(device).manual_seed(0)
    shape = (TAPS, 1, num_images)
    margins = torch.randn(shape, generator=generator, device=device)
    ledger.record(
        torch.arange(num_images, device=device),
        torch.randint(1000, (num_images,), generator=generator, device=device),
        torch.rand(num_images, generator=generator, device=device),
        torch.rand(num_images, generator=generator, device=device) < 0.7,
        margins > 0,
        torch.randn(shape, generator=generator, device=device),
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


def measure(num_images: int, rounds: int, device: str) -> dict[str, Any]:
    """Time the figures of a phase both ways, and one copy of what they read."""
    ledger = filled(num_images, device)
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
    clock = time.process_time if device == "cpu" else time.perf_counter
    return {"seconds": interleave(contenders, rounds, device=device, clock=clock)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, 3 rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    num_images, rounds = (IMAGES // 10, 3) if arguments.quick else (IMAGES, 7)
    results = Results("epoch_end", arguments.device, arguments.out)
    call = partial(measure, num_images, rounds, arguments.device)
    found = results.measure(call, images=num_images, taps=TAPS, rounds=rounds)
    ours, theirs, copy = (found["seconds"][name] for name in ("ours", "sort", "copy"))
    unit, asked = ("CPU seconds", f", asked at most {ASKED}") if arguments.device == "cpu" else ("seconds", "")
    low, high = ratio_interval(ours, theirs)
    text = (
        f"{num_images:,} images x {TAPS} taps, a phase: {median(ours):.3f} {unit}, with a full sort {median(theirs):.3f}: "
        f"{ratio(ours, theirs):.2f} [{low:.2f}, {high:.2f}] of it{asked}; "
        f"reading the columns once, at the rate of a copy: {median(copy):.4f}\n"
    )
    print(text, end="")
    results.write("figures.txt", text)


if __name__ == "__main__":
    main()
