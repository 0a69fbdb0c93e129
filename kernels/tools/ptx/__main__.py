"""`python -m rlpheads.kernels.tools.ptx`: what the kernels of a loss execute on three chips, beside the model of `traffic`.

Forward and backward of one loss, of the tiles of logits the first alone, scaled by the grid. "Read once" takes each tensor of
a launch from memory once; "asked for" is what threads ask for, caches or not; "shared" is what threads, copies and matrix
products read and write of shared memory.
"""

import argparse
from collections import Counter, defaultdict

import torch
from rich.console import Console
from rich.table import Table

from rlpheads.kernels.gpu.slab_plan import PassOutputs
from rlpheads.kernels.gpu.triton_tiles import KNOWN_CHIPS, chip_tiles
from rlpheads.kernels.random_label_loss import random_label_loss
from rlpheads.kernels.tools import traffic
from rlpheads.kernels.tools.ptx.block import KernelLaunch
from rlpheads.kernels.tools.ptx.counts import KINDS
from rlpheads.kernels.tools.ptx.launch import executed

COLUMNS = ("kernel", "chip", "blocks", "a logit", *KINDS, "integer")
COLUMNS += ("read once", "asked for", "written", "shared", "16 B", "conflicts")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PASS = ("row_shifts", "class_tiles", "merge_tiles", "align_tiles")
"""Kernels of the pass over the logits, which `traffic` models."""


def launches_of(
    chip: int, sizes: tuple[int, int, int], dtype: torch.dtype, kind: str, bias: bool
) -> list[KernelLaunch]:
    """Execute the launches of one loss, whose results mean nothing: what no tile wrote is NaN, which lifts nothing."""
    torch.use_deterministic_algorithms(True)  # fills empty tensors
    rows, features, labels = sizes
    x_BD = torch.randn(rows, features).to(dtype).requires_grad_()
    w_KD = (torch.randn(labels, features) / features**0.5).requires_grad_()
    b_K = torch.zeros(labels, requires_grad=True) if bias else None
    with executed(chip, limits={"class_tiles_kernel": 1}) as executor:
        loss = random_label_loss(
            x_BD, w_KD, torch.randint(labels, (rows,)), bias_K=b_K, regularizer=kind, impl="triton", memory_budget=2**33
        )
        assert loss.regularizer_B is not None
        (loss.cross_entropy_B + loss.regularizer_B).sum().backward()
    return executor.launches


def rows_of(chip: int, launches: list[KernelLaunch], num_logits: int) -> list[list[str]]:
    """One row a kernel: thread-instructions a logit by kind, megabytes, share of stores with 16 bytes, bank conflicts."""
    found = defaultdict(list)
    for launch in launches:
        found[launch.program.name.removesuffix("_kernel")].append(launch)
    rows = []
    for name, group in found.items():
        scales = [launch.counts.grid / launch.counts.blocks for launch in group]
        each: Counter[str] = Counter()
        for launch, scale in zip(group, scales, strict=True):
            each.update({kind: number * scale / num_logits for kind, number in launch.counts.instructions.items()})
        stores = sum((launch.counts.stores for launch in group), Counter())
        passes = sum(launch.counts.shared_passes for launch in group)
        conflicts = sum(launch.counts.bank_conflicts for launch in group)
        shared = sum(launch.counts.shared_bytes * scale for launch, scale in zip(group, scales, strict=True))
        rows.append(
            [name, f"sm_{chip}", str(sum(launch.counts.grid for launch in group)), f"{each.total():.2f}"]
            + [f"{each[kind]:.2f}" for kind in (*KINDS, "integer")]
            + [f"{number / 1e6:.2f}" for number in (*moved(group), shared)]
            + [f"{stores[16] / max(stores.total(), 1):.0%}", f"{conflicts / max(passes, 1):.0%}"]
        )
    return rows


def moved(launches: list[KernelLaunch]) -> tuple[float, float, float]:
    """Bytes read once, asked for and written, of whole grids."""
    scales = [(launch.memory, launch.counts.grid / launch.counts.blocks) for launch in launches]
    return (
        sum(memory.read_once(scale) for memory, scale in scales),
        sum(memory.read.total() * scale for memory, scale in scales),
        sum(memory.written.total() * scale for memory, scale in scales),
    )


def main(arguments: list[str] | None = None) -> None:
    """Execute and print."""
    parser = argparse.ArgumentParser(prog="python -m rlpheads.kernels.tools.ptx", description=__doc__.split("\n\n")[0])
    parser.add_argument("--chips", type=int, nargs="+", choices=KNOWN_CHIPS, default=list(KNOWN_CHIPS))
    parser.add_argument(
        "--sizes", type=int, nargs=3, default=[128, 768, 10_000], metavar=("ROWS", "FEATURES", "LABELS")
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--regularizer", choices=("unlikelihood", "uniform", "entropy"), default="unlikelihood")
    parser.add_argument("--bias", action="store_true")
    options = parser.parse_args(arguments)
    rows, features, labels = options.sizes
    table = Table(title=f"executed: B={rows}, D={features}, K={labels}; instructions a logit by kind, megabytes")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "kernel" else "right")
    outputs = PassOutputs(True, options.regularizer == "entropy", options.regularizer == "uniform")
    itemsize = DTYPES[options.dtype].itemsize
    load = traffic.Workload(rows, features, labels, itemsize, 4, outputs)
    compulsory = traffic.compulsory_tile_bytes(load)
    lines = []
    for chip in options.chips:
        tiles = chip_tiles(
            chip, DTYPES[options.dtype], rows, rich=outputs.has_base or outputs.moments, bias=options.bias
        )[0]
        launches = launches_of(chip, (rows, features, labels), DTYPES[options.dtype], options.regularizer, options.bias)
        for row in rows_of(chip, launches, rows * labels):
            table.add_row(*row)
        once, _, written = moved([launch for launch in launches if launch.program.name.removesuffix("_kernel") in PASS])
        lines.append(
            f"sm_{chip}: pass over the logits {(once + written) / compulsory:.3f} of the compulsory bytes executed"
        )
        cast = labels * features * (4 + itemsize) * (itemsize < 4)
        lines[-1] += f", {traffic.modelled_tile_bytes(load, tiles) / compulsory:.3f} by the model"
        lines[-1] += f", {(once + written + cast) / compulsory:.3f} with the cast of a float32 weight"
    console = Console(width=max(Console().width, 190))
    console.print(table, *lines, sep="\n")


if __name__ == "__main__":
    main()
