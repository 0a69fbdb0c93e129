"""`python -m rlpheads.kernels.tools.ptx`: what the kernels of a loss execute on three chips, beside the model of `traffic`.

Forward and backward of one loss. Tiles of logits are of two kinds: whole and without a label, or with a label or the edge of
the matrix; one of each is executed, and stands for all of its kind in the grid. "Read once" takes each tensor of a launch from
memory once; "asked for" is what threads ask for, caches or not; "shared" is what threads, copies and matrix products read and
write of shared memory.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rlpheads.kernels.gpu.slab_plan import PassOutputs
from rlpheads.kernels.gpu.triton_tiles import KNOWN_CHIPS, chip_tiles
from rlpheads.kernels.random_label_loss import random_label_loss
from rlpheads.kernels.tools import traffic
from rlpheads.kernels.tools.ptx.block import BlockIndex, BlockKind, KernelLaunch
from rlpheads.kernels.tools.ptx.counts import KINDS
from rlpheads.kernels.tools.ptx.launch import executed

ALL_KINDS = (*KINDS, "integer")
COLUMNS = ("kernel", "chip", "blocks", "a logit", *ALL_KINDS)
COLUMNS += ("read once", "asked for", "written", "shared", "16 B", "conflicts")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PASS = ("row_shifts", "class_tiles", "merge_tiles", "align_tiles")
"""Kernels of the pass over the logits, which `traffic` models."""


PLAIN, SPECIAL = "no label, no edge", "label or edge"


def kinds_of_tiles(named: dict[str, Any], grid: tuple[int, int, int]) -> list[BlockKind]:
    """The tiles of `class_tiles` by its two epilogues; a kind of which there is none is left out."""
    num_rows, num_classes, start = (named[name] for name in ("num_rows", "num_classes", "start"))
    rows, classes = named["ROWS"], named["CLASSES"]
    row_tiles = -(-named["num_kept_rows"] // rows)
    tiles: dict[str, list[BlockIndex]] = {PLAIN: [], SPECIAL: []}
    outputs = Counter[str]()
    for head, number in ((head, number) for head in range(grid[1]) for number in range(grid[0])):
        first_row, first_class = number % row_tiles * rows, number // row_tiles * classes
        inside = min(rows, max(num_rows - first_row, 0)), min(classes, num_classes - first_class)
        own_rows = slice(head * num_rows + first_row, head * num_rows + first_row + inside[0])
        column_LM = named["labels"][:, own_rows] - start - first_class
        has_label = bool(((column_LM >= 0) & (column_LM < classes)).any())
        name = SPECIAL if has_label or inside != (rows, classes) else PLAIN
        tiles[name].append((number, head, 0))
        outputs[name] += inside[0] * inside[1]
    return [BlockKind(name, blocks, outputs[name]) for name, blocks in tiles.items() if blocks]


def launches_of(
    chip: int, sizes: tuple[int, int, int], dtype: torch.dtype, kind: str, bias: bool
) -> list[KernelLaunch]:
    """Execute the launches of one loss, whose results mean nothing: what no tile wrote is NaN, which lifts nothing."""
    torch.use_deterministic_algorithms(True)  # fills empty tensors
    rows, features, labels = sizes
    generator = torch.Generator().manual_seed(0)
    x_BD = torch.randn(rows, features, generator=generator).to(dtype).requires_grad_()
    w_KD = (torch.randn(labels, features, generator=generator) / features**0.5).requires_grad_()
    labels_B = torch.randint(labels, (rows,), generator=generator)
    b_K = torch.zeros(labels, requires_grad=True) if bias else None
    with executed(chip, kinds={"class_tiles_kernel": kinds_of_tiles}) as executor:
        loss = random_label_loss(x_BD, w_KD, labels_B, bias_K=b_K, regularizer=kind, impl="triton", memory_budget=2**33)
        assert loss.regularizer_B is not None
        (loss.cross_entropy_B + loss.regularizer_B).sum().backward()
    return executor.launches


def rows_of(name: str, chip: int, launches: list[KernelLaunch], num_logits: int) -> list[list[str]]:
    """A kernel's row, and below it one of each kind of its blocks, a logit of that kind."""
    rows = [row_of(name, chip, launches, num_logits)]
    for kind, some in by_kind(launches).items():
        rows.append(row_of(f"  {kind}", chip, some, some[0].kind.num_outputs if some[0].kind else num_logits))
    return rows


def by_kind(launches: Sequence[KernelLaunch]) -> dict[str, list[KernelLaunch]]:
    """Those that stand for a kind of blocks each."""
    found: defaultdict[str, list[KernelLaunch]] = defaultdict(list)
    for launch in launches:
        if launch.kind is not None:
            found[launch.kind.name].append(launch)
    return found


def row_of(name: str, chip: int, launches: list[KernelLaunch], num_logits: int) -> list[str]:
    """Thread-instructions a logit by kind, megabytes, share of stores with 16 bytes, bank conflicts."""
    counts = [launch.counts for launch in launches]
    each = [instructions_of(launches, kind) / num_logits for kind in ALL_KINDS]
    stores = sum((one.stores for one in counts), Counter())
    conflicts = sum(one.bank_conflicts for one in counts) / max(sum(one.shared_passes for one in counts), 1)
    row = [name, f"sm_{chip}", str(sum(one.grid for one in counts))]
    row += [f"{number:.2f}" for number in (sum(each), *each, *(size / 1e6 for size in moved(launches)))]
    return [*row, f"{stores[16] / max(stores.total(), 1):.0%}", f"{conflicts:.0%}"]


def instructions_of(launches: list[KernelLaunch], kind: str) -> float:
    """Thread-instructions of a kind in whole grids."""
    return sum(launch.counts.instructions[kind] * launch.counts.scale for launch in launches)


def moved(launches: list[KernelLaunch]) -> list[float]:
    """Bytes read once, asked for and written, and of shared memory, of whole grids."""
    sums = [0.0] * 3
    for launch in launches:
        sizes = (launch.memory.read.total(), launch.memory.written.total(), launch.counts.shared_bytes)
        sums = [total + launch.counts.scale * size for total, size in zip(sums, sizes, strict=True)]
    # The kinds of blocks of one launch have the same arguments.
    return [sum(read_once(list(kinds)) for _, kinds in groupby(launches, lambda launch: launch.values)), *sums]


def read_once(kinds: list[KernelLaunch]) -> float:
    """Bytes read of a launch, of which these are the kinds of blocks, if every tensor is read from memory at most once."""
    asked = Counter[int]()
    for launch in kinds:
        for start, num_bytes in launch.memory.read.items():
            asked[start] += num_bytes * launch.counts.scale  # type: ignore[assignment]
    return sum(min(num_bytes, kinds[0].memory.size(start)) for start, num_bytes in asked.items())


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
            for row in rows_of(name, chip, group, rows * labels):
                table.add_row(*row)
        once, _, written, _ = moved([launch for name in PASS for launch in launches[name]])
        tiles = chip_tiles(chip, dtype, rows, base=outputs.has_base or outputs.moments, bias=bias)[0]
        lines.append(
            f"sm_{chip}: pass over the logits {(once + written) / compulsory:.3f} of the compulsory bytes executed, "
            f"{traffic.modelled_tile_bytes(load, tiles) / compulsory:.3f} by the model, "
            f"{(once + written + cast) / compulsory:.3f} with the cast of a float32 weight"
        )
    Console(width=max(Console().width, 220)).print(table, *lines, sep="\n")


if __name__ == "__main__":
    main()
