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

ALL_KINDS = (*KINDS, "integer")
COLUMNS = ("kernel", "chip", "blocks", "a logit", *ALL_KINDS)
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


def row_of(name: str, chip: int, launches: list[KernelLaunch], num_logits: int) -> list[str]:
    """A kernel's: thread-instructions a logit by kind, megabytes, share of stores with 16 bytes, bank conflicts."""
    counts = [launch.counts for launch in launches]
    each = [sum(one.instructions[kind] * one.scale for one in counts) / num_logits for kind in ALL_KINDS]
    stores = sum((one.stores for one in counts), Counter())
    conflicts = sum(one.bank_conflicts for one in counts) / max(sum(one.shared_passes for one in counts), 1)
    row = [name, f"sm_{chip}", str(sum(one.grid for one in counts))]
    row += [f"{number:.2f}" for number in (sum(each), *each, *(size / 1e6 for size in moved(launches)))]
    return [*row, f"{stores[16] / max(stores.total(), 1):.0%}", f"{conflicts:.0%}"]


def moved(launches: list[KernelLaunch]) -> list[float]:
    """Bytes read once, asked for and written, and of shared memory, of whole grids."""
    sums = [0.0] * 4
    for launch in launches:
        memory, counts, scale = launch.memory, launch.counts, launch.counts.scale
        sizes = (memory.read.total(), memory.written.total(), counts.shared_bytes)
        one = (memory.read_once(scale), *(scale * size for size in sizes))
        sums = [total + size for total, size in zip(sums, one, strict=True)]
    return sums


def parser() -> argparse.ArgumentParser:
    """What can be asked for."""
    made = argparse.ArgumentParser(prog="python -m rlpheads.kernels.tools.ptx", description=__doc__.split("\n\n")[0])
    made.add_argument("--chips", type=int, nargs="+", choices=KNOWN_CHIPS, default=list(KNOWN_CHIPS))
    made.add_argument("--sizes", type=int, nargs=3, default=[128, 768, 10_000], metavar=("ROWS", "FEATURES", "LABELS"))
    made.add_argument("--dtype", choices=DTYPES, default="bf16")
    made.add_argument("--regularizer", choices=("unlikelihood", "uniform", "entropy"), default="unlikelihood")
    made.add_argument("--bias", action="store_true")
    return made


def main(arguments: list[str] | None = None) -> None:
    """Execute and print."""
    options = parser().parse_args(arguments)
    rows, features, labels = options.sizes
    kind, dtype, bias = options.regularizer, DTYPES[options.dtype], options.bias
    outputs = PassOutputs(True, kind == "entropy", kind == "uniform")
    load = traffic.Workload(rows, features, labels, dtype.itemsize, 4, outputs)
    compulsory, cast = traffic.compulsory_tile_bytes(load), traffic.cast_bytes(load, 1)
    table = Table(title=f"executed: B={rows}, D={features}, K={labels}; instructions a logit by kind, megabytes")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "kernel" else "right")
    lines = []
    for chip in options.chips:
        launches = defaultdict(list)
        for launch in launches_of(chip, (rows, features, labels), dtype, kind, bias):
            launches[launch.program.name.removesuffix("_kernel")].append(launch)
        for name, group in launches.items():
            table.add_row(*row_of(name, chip, group, rows * labels))
        once, _, written, _ = moved([launch for name in PASS for launch in launches[name]])
        tiles = chip_tiles(chip, dtype, rows, base=outputs.has_base or outputs.moments, bias=bias)[0]
        lines.append(
            f"sm_{chip}: pass over the logits {(once + written) / compulsory:.3f} of the compulsory bytes executed, "
            f"{traffic.modelled_tile_bytes(load, tiles) / compulsory:.3f} by the model, "
            f"{(once + written + cast) / compulsory:.3f} with the cast of a float32 weight"
        )
    Console(width=max(Console().width, 190)).print(table, *lines, sep="\n")


if __name__ == "__main__":
    main()
