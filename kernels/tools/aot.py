"""`python -m rlpheads.kernels.tools.aot`: compile every Triton kernel for GPUs that are not there, and judge the machine code.

Prints a row for each kernel and chip: registers, shared memory, spills, tensor-core instructions, and the bytes that it
moves by the model of `rlpheads.kernels.tools.traffic`, as a multiple of the compulsory ones. Exits with 1 where a kernel
spills, multiplies without tensor cores, takes more shared memory than the chip has, or moves more than 1.10 times the
compulsory bytes. With `--candidates` it does so with the tiles that `tune` may put in the place of the usual ones.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlpheads.kernels.gpu.triton_tiles import PREPARED_CHIPS
from rlpheads.kernels.tools.aot_kernels import Build, builds, candidate_builds
from rlpheads.kernels.tools.aot_sass import MachineCode, compile_build
from rlpheads.kernels.tools.traffic import (
    Work,
    compulsory_products,
    compulsory_tiles,
    modelled_products,
    modelled_tiles,
)

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Shared memory that one block may take on each chip."""

MOST_BYTES = 1.10
BATCHES = (64, 128, 256, 512, 1024)
FEATURES, LABELS = 768, 100_000


@dataclass(frozen=True)
class Finding:
    """One kernel on one chip."""

    kernel: str
    chip: int
    code: MachineCode
    tiles_ratio: float | None
    """Modelled over compulsory bytes of the pass over the logits, at the worst batch size."""
    whole_ratio: float | None
    """The same of the whole loss."""
    faults: list[str]


def examine(build: Build) -> Finding:
    """Compile a kernel and say what is wrong with it."""
    code = compile_build(build)
    tiles_ratio, whole_ratio = byte_ratios(build)
    faults = []
    if code.spills:
        faults.append(f"{code.spills} spills")
    if not any(name.startswith(build.tensor_cores) for name in code.tensor_instructions) and build.tensor_cores:
        faults.append(f"no tensor cores ({build.tensor_cores})")
    if code.shared_bytes > SHARED_BYTES[build.chip]:
        faults.append(f"{code.shared_bytes} bytes of shared memory, the chip has {SHARED_BYTES[build.chip]}")
    if max(tiles_ratio or 0, whole_ratio or 0) > MOST_BYTES:
        faults.append(f"more than {MOST_BYTES} times the compulsory bytes")
    return Finding(build.name, build.chip, code, tiles_ratio, whole_ratio, faults)


def byte_ratios(build: Build) -> tuple[float | None, float | None]:
    """Modelled over compulsory bytes at the worst of BATCHES, of the pass over the logits and of the whole loss."""
    if build.tiles is None:
        return None, None
    passes, wholes = [], []
    for rows in BATCHES:
        work = Work(rows, FEATURES, LABELS, build.itemsize, 4, build.wanted)
        modelled, compulsory = modelled_tiles(work, build.tiles), compulsory_tiles(work)
        passes.append(modelled / compulsory)
        wholes.append((modelled + modelled_products(work)) / (compulsory + compulsory_products(work)))
    return max(passes), max(wholes)


def table(findings: list[Finding]) -> Table:
    """Lay the findings out."""
    grid = Table(
        title=f"kernels ahead of time; bytes at D={FEATURES}, K={LABELS}, worst of B={', '.join(map(str, BATCHES))}"
    )
    for column in ("kernel", "chip", "registers", "shared KB", "spills", "tensor cores", "bytes", "whole loss", ""):
        grid.add_column(column, justify="left" if column in ("kernel", "") else "right")
    for finding in findings:
        code = finding.code
        grid.add_row(
            finding.kernel,
            f"sm_{finding.chip}",
            str(code.registers),
            f"{code.shared_bytes / 1024:.0f}",
            str(code.spills),
            ", ".join(f"{count} {name}" for name, count in code.tensor_instructions.items()) or "–",
            "–" if finding.tiles_ratio is None else f"{finding.tiles_ratio:.3f}",
            "–" if finding.whole_ratio is None else f"{finding.whole_ratio:.3f}",
            f"[red]{'; '.join(finding.faults)}" if finding.faults else "ok",
        )
    return grid


def main(arguments: list[str] | None = None) -> int:
    """Compile, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m rlpheads.kernels.tools.aot", description=__doc__.split("\n\n")[0])
    parser.add_argument("--chips", type=int, nargs="+", choices=PREPARED_CHIPS, default=list(PREPARED_CHIPS))
    parser.add_argument("--quick", action="store_true", help="one variant of each kernel")
    parser.add_argument(
        "--candidates",
        action="store_true",
        help="the tiles that rlpheads.kernels.tools.tune chooses among, but for the usual ones",
    )
    parser.add_argument("--json", type=Path, help="also write the findings to this file")
    options = parser.parse_args(arguments)
    console = Console(width=max(Console().width, 130))
    findings = []
    chosen = candidate_builds if options.candidates else builds
    for build in (build for chip in options.chips for build in chosen(chip, quick=options.quick)):
        console.print(f"compiling {build.name} for sm_{build.chip}", style="dim")
        findings.append(examine(build))
    console.print(table(findings))
    if options.json:
        options.json.write_text(json.dumps([asdict(finding) for finding in findings], indent=2))
    faulty = [finding for finding in findings if finding.faults]
    console.print(f"{len(findings)} kernels compiled, {len(faulty)} faulty")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
