"""`python -m rlpheads.kernels.tools.aot`: compile every Triton kernel ahead of time for three chips, and check the SASS.

Prints a row for each kernel, chip and specialisation (Triton compiles one code for sizes that are multiples of 16 and another
for those that are not): registers, shared memory, spills, tensor-core instructions, instructions a logit behind the products on
the shortest way, and the bytes that it moves by the model of `rlpheads.kernels.tools.traffic`, as a multiple of the compulsory
ones, without and with the cast of a float32 weight. Exits with 1 where a kernel spills, multiplies without tensor cores, lets
threads round one sum differently, takes more shared memory than the chip has, or moves more than 1.10 times the compulsory
bytes, the cast left out. With `--candidates` it does so with the tiles that `tune` may put in the place of the usual ones.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlpheads.kernels.gpu.triton_tiles import KNOWN_CHIPS
from rlpheads.kernels.tools.aot_kernels import (
    ALL_SPECIALIZATIONS,
    SPECIALIZATIONS,
    Build,
    builds,
    candidate_builds,
    specialize,
)
from rlpheads.kernels.tools.aot_sass import MachineCode, compile_build
from rlpheads.kernels.tools.traffic import (
    Workload,
    cast_bytes,
    compulsory_product_bytes,
    compulsory_tile_bytes,
    modelled_product_bytes,
    modelled_tile_bytes,
)

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Shared memory that one block may take on each chip."""

MAX_BYTES_RATIO = 1.10
BATCHES = (64, 128, 256, 512, 1024)
FEATURES, LABELS = 768, 100_000


@dataclass(frozen=True)
class KernelReport:
    """Machine code, modelled bytes and faults of one kernel on one chip."""

    kernel: str
    chip: int
    multiples: str
    """Which of the sizes B, K and D are multiples of 16."""
    code: MachineCode
    tiles_ratio: float | None
    """Modelled over compulsory bytes of the pass over the logits, at the worst batch size."""
    whole_ratio: float | None
    """The same of the whole loss."""
    cast_ratio: float | None
    """The same with the cast of a float32 weight to the operands' dtype, which is no kernel's and no fault."""
    epilogue: float | None
    """SASS instructions a logit on the common path behind the products, each counted once for every thread."""
    faults: list[str]


def check_build(build: Build) -> KernelReport:
    """Compile a kernel and list its faults: spills, no tensor cores, too much shared memory, too many bytes."""
    code = compile_build(build)
    tiles_ratio, whole_ratio, cast_ratio = byte_ratios(build)
    faults = []
    if code.spills:
        faults.append(f"{code.spills} spills")
    if not any(name.startswith(build.tensor_cores) for name in code.tensor_instructions) and build.tensor_cores:
        faults.append(f"no tensor cores ({build.tensor_cores})")
    if code.fused_exchanges:
        faults.append(f"{code.fused_exchanges} sums of exchanged numbers that threads round differently")
    if code.shared_bytes > SHARED_BYTES[build.chip]:
        faults.append(f"{code.shared_bytes} bytes of shared memory, the chip has {SHARED_BYTES[build.chip]}")
    if max(tiles_ratio or 0, whole_ratio or 0) > MAX_BYTES_RATIO:
        faults.append(f"more than {MAX_BYTES_RATIO} times the compulsory bytes")
    epilogue = None
    if build.tiles_of_launch and code.behind_products:
        epilogue = (
            code.behind_products * 32 * build.options["num_warps"] / (build.flags["ROWS"] * build.flags["CLASSES"])
        )
    ratios = tiles_ratio, whole_ratio, cast_ratio
    return KernelReport(build.name, build.chip, build.multiples, code, *ratios, epilogue, faults)


def byte_ratios(build: Build) -> tuple[float | None, float | None, float | None]:
    """Modelled over compulsory bytes at the worst of BATCHES: of the pass over the logits, of the whole loss, with the cast."""
    if build.tiles is None:
        return None, None, None
    passes, wholes, casts = [], [], []
    for rows in BATCHES:
        load = Workload(rows, FEATURES, LABELS, build.itemsize, 4, build.outputs)
        modelled, compulsory = modelled_tile_bytes(load, build.tiles), compulsory_tile_bytes(load)
        passes.append(modelled / compulsory)
        modelled, compulsory = modelled + modelled_product_bytes(load), compulsory + compulsory_product_bytes(load)
        wholes.append(modelled / compulsory)
        casts.append((modelled + cast_bytes(load)) / compulsory)
    return max(passes), max(wholes), max(casts)


def report_table(reports: list[KernelReport]) -> Table:
    """One row a kernel and chip."""
    grid = Table(
        title=f"kernels ahead of time; bytes at D={FEATURES}, K={LABELS}, worst of B={', '.join(map(str, BATCHES))}"
    )
    for column in (
        "kernel",
        "chip",
        "multiples of 16",
        "registers",
        "shared KB",
        "spills",
        "tensor cores",
        "SASS a logit",
        "bytes",
        "whole loss",
        "",
    ):
        grid.add_column(column, justify="left" if column in ("kernel", "") else "right")
    for report in reports:
        code = report.code
        grid.add_row(
            report.kernel,
            f"sm_{report.chip}",
            ", ".join(report.multiples) or "–",
            str(code.registers),
            f"{code.shared_bytes / 1024:.0f}",
            str(code.spills),
            ", ".join(f"{count} {name}" for name, count in code.tensor_instructions.items()) or "–",
            "–" if report.epilogue is None else f"{report.epilogue:.1f}",
            "–" if report.tiles_ratio is None else f"{report.tiles_ratio:.3f}",
            "–" if report.whole_ratio is None else f"{report.whole_ratio:.3f}",
            "–" if report.cast_ratio is None else f"{report.cast_ratio:.2f}",
            f"[red]{'; '.join(report.faults)}" if report.faults else "ok",
        )
    return grid


def main(arguments: list[str] | None = None) -> int:
    """Compile, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m rlpheads.kernels.tools.aot", description=__doc__.split("\n\n")[0])
    parser.add_argument("--chips", type=int, nargs="+", choices=KNOWN_CHIPS, default=list(KNOWN_CHIPS))
    parser.add_argument("--quick", action="store_true", help="one variant of each kernel")
    parser.add_argument(
        "--candidates",
        action="store_true",
        help="the tiles that rlpheads.kernels.tools.tune chooses among, but for the usual ones",
    )
    parser.add_argument(
        "--all-sizes",
        action="store_true",
        help="all eight combinations of sizes that are multiples of 16 and sizes that are not, in place of three",
    )
    parser.add_argument("--json", type=Path, help="also write the reports to this file")
    options = parser.parse_args(arguments)
    console = Console(width=max(Console().width, 130))
    reports = []
    chosen = candidate_builds if options.candidates else builds
    specializations = ALL_SPECIALIZATIONS if options.all_sizes else SPECIALIZATIONS
    for build in (build for chip in options.chips for build in chosen(chip, quick=options.quick)):
        console.print(f"compiling {build.name} for sm_{build.chip}", style="dim")
        reports += [check_build(specialize(build, multiples)) for multiples in specializations]
        if options.json:
            options.json.write_text(json.dumps([asdict(report) for report in reports], indent=2))
    console.print(report_table(reports))
    faulty = [report for report in reports if report.faults]
    console.print(f"{len(reports)} kernels compiled, {len(faulty)} faulty")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
