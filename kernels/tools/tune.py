"""`python -m rlpheads.kernels.tools.tune`: autotune the tiles for a head on this GPU, and cache the fastest.

Times every candidate of `rlpheads.kernels.gpu.triton_tiles` by the loss's own launches, forward, and writes the winner into
tiles.json in the user's cache folder (`XDG_CACHE_HOME`), or the file that RLPHEADS_TILES names. From then on the loss takes
it for this device, version of Triton, dtype and shape, and its usual tiles for all else. Tiles decide the last bits of sums:
tune before a run, not between its parts. Under Triton's interpreter (TRITON_INTERPRET=1) all of this runs on the CPU, and
the times mean nothing.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rlpheads.kernels.gpu import triton_loss
from rlpheads.kernels.gpu.slab_plan import PassOutputs, plan_slabs
from rlpheads.kernels.gpu.triton_tiles import TileConfig
from rlpheads.kernels.gpu.tuned_tiles import FILE_VARIABLE, TuningCase, Winner, read_winners, save_winner, tiles_file
from rlpheads.kernels.random_label_loss import DEFAULT_MEMORY_BUDGET
from rlpheads.kernels.rows.terms import REGULARIZERS

if TYPE_CHECKING:
    from rlpheads.kernels.gpu.triton_launch import Operands
    from rlpheads.kernels.gpu.triton_passes import ForwardPass

MIN_SPEEDUP = 0.02
"""By which part of its time tiles must beat the usual ones: less is within what a measurement repeats to."""

TOLERANCE = 1e-3
"""Difference of log Σ e^z from that of the usual tiles, of which correct ones stay far below."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class HeadShape:
    """Shape, dtype, regularizer, pair and bias of one kind of head."""

    rows: int
    features: int
    classes: int
    dtype: torch.dtype
    regularizer: str
    pair: bool
    bias: bool

    @property
    def outputs(self) -> PassOutputs:
        """Sums that the pass over the classes computes."""
        return PassOutputs(True, moments=self.regularizer == "entropy", sum_logits=self.regularizer == "uniform")


@dataclass(frozen=True)
class Timing:
    """One candidate: its time, or why it has none."""

    tiles: TileConfig
    milliseconds: float | None
    reason: str = ""


def time_candidates(head: HeadShape, device: str) -> tuple[TuningCase, list[Timing]]:
    """Time every candidate on random numbers, the usual tiles first."""
    from triton.errors import TritonError

    from rlpheads.kernels.gpu import triton_launch, triton_passes

    operands = _random_operands(head, device)
    has_base = head.outputs.has_base or head.outputs.moments
    case = triton_launch.tuning_case(operands, has_base=has_base)
    itemsize = head.dtype.itemsize
    plan = plan_slabs(head.rows, head.classes, itemsize, DEFAULT_MEMORY_BUDGET, head.outputs)
    timings: list[Timing] = []
    usual_B: Tensor | None = None
    for tiles in triton_launch.candidate_tiles(operands.features_RD, case):

        def call(tiles: TileConfig = tiles) -> "ForwardPass":
            return triton_passes.forward_pass(operands, plan, head.outputs, tiles)

        try:
            lse_B = _log_sums(call())
        except TritonError as error:
            timings.append(Timing(tiles, None, f"does not run here: {str(error).splitlines()[-1]}"))
            continue
        usual_B = lse_B if usual_B is None else usual_B
        if not torch.allclose(lse_B, usual_B, rtol=TOLERANCE, atol=TOLERANCE):
            timings.append(Timing(tiles, None, "computes something else than the usual tiles"))
            continue
        timings.append(Timing(tiles, median_milliseconds(call, interpreted=triton_launch.EMULATED)))
    return case, timings


def _random_operands(head: HeadShape, device: str) -> "Operands":
    """Random operands of a head near its initialisation."""
    from rlpheads.kernels.gpu.triton_launch import Operands

    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    return Operands(
        normal(head.rows, head.features).to(head.dtype),
        (normal(head.classes, head.features) * 0.5 / head.features**0.5).to(head.dtype),
        normal(head.classes).to(head.dtype) if head.bias else None,
        torch.randint(head.classes, (1 + head.pair, head.rows), generator=generator, device=device),
        0,
    )


def _log_sums(found: "ForwardPass") -> Tensor:
    """Log Σ e^z of every row over the classes but its labels."""
    return found.state_SR[1].log() + found.shift_CR[-1]


def median_milliseconds(call: Callable[[], object], *, interpreted: bool) -> float:
    """Median time of a call that has run once; under the interpreter one call by the wall clock."""
    if interpreted:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    from triton.testing import do_bench

    return float(do_bench(call, return_mode="median"))


def fastest_tiles(timings: list[Timing]) -> Winner | None:
    """The fastest tiles, if they beat the usual ones by MIN_SPEEDUP, else these; None where the usual ones do not run."""
    usual = timings[0].milliseconds
    if usual is None:
        return None
    times = {timing.tiles: timing.milliseconds for timing in timings if timing.milliseconds is not None}
    fastest = min(times, key=times.__getitem__)
    chosen = fastest if times[fastest] <= (1 - MIN_SPEEDUP) * usual else timings[0].tiles
    return Winner(chosen, times[chosen], usual)


def timings_table(case: TuningCase, timings: list[Timing], kept: Winner | None) -> Table:
    """Times of every candidate of a case."""
    title = (
        f"B={case.rows}, D={case.features}, K={case.classes:,}, {case.operands}, {case.device}, Triton {case.triton}"
    )
    kinds = [f", {name}" for name in ("pair", "base", "bias") if getattr(case, name)]
    grid = Table(title="".join([title, *kinds]), title_justify="left")
    for heading in ("tiles (rows × classes × features)", "ms", "of the usual", ""):
        grid.add_column(heading, justify="right" if heading in ("ms", "of the usual") else "left")
    usual = timings[0].milliseconds
    for timing in timings:
        note = "kept" if kept is not None and timing.tiles == kept.tiles else timing.reason
        ratio = timing.milliseconds / usual if timing.milliseconds and usual else None
        numbers = ("–" if value is None else f"{value:.3f}" for value in (timing.milliseconds, ratio))
        grid.add_row(str(timing.tiles), *numbers, note)
    return grid


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rlpheads.kernels.tools.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, letter, meaning in (
        ("rows", "B", "rows of a call: the batch of one device"),
        ("features", "D", "width of the tap"),
        ("classes", "K", "random labels, or those of one device where the head is sharded"),
    ):
        parser.add_argument(f"--{name}", type=_positive_integer, nargs="+", required=True, metavar=letter, help=meaning)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the features; default: bfloat16")
    parser.add_argument("--regularizer", choices=REGULARIZERS, default="unlikelihood", help="default: unlikelihood")
    parser.add_argument("--pair", action="store_true", help="two labels a row, as with mixup")
    parser.add_argument("--bias", action="store_true", help="heads with a bias")
    parser.add_argument("--file", type=Path, help="write here, in place of the cache folder; see RLPHEADS_TILES")
    return parser.parse_args(arguments)


def _positive_integer(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def precondition_failure(path: Path | None, device: str, dtype: torch.dtype) -> str | None:
    """Why nothing can be measured here or written; None if it can."""
    if reason := triton_loss.unsupported_reason(torch.empty(0, device=device, dtype=dtype)):
        return f"nothing to measure: the loss by Triton {reason} (with TRITON_INTERPRET=1 it is interpreted on the CPU)"
    if path is None:
        return f"nowhere to write: {FILE_VARIABLE} is empty, or there is no home folder; name a file by --file"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists():
            read_winners(path)
    except OSError as error:
        return f"nowhere to write: no file can be made in {path.parent} ({error.strerror}); name another by --file"
    except ValueError as error:
        return str(error)
    return None


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and keep; return the exit code: 1 where usual tiles do not run, 2 where nothing can be measured."""
    options = parse_arguments(arguments)
    console = Console(width=max(Console().width, 110))
    on_cpu = triton_loss.INTERPRETS or not torch.cuda.is_available()
    device, dtype, path = "cpu" if on_cpu else "cuda", DTYPES[options.dtype], options.file or tiles_file()
    reason = precondition_failure(path, device, dtype)
    if reason is not None or path is None:
        console.print(reason, soft_wrap=True)
        return 2
    failed = 0
    for rows, features, classes in product(options.rows, options.features, options.classes):
        head = HeadShape(rows, features, classes, dtype, options.regularizer, options.pair, options.bias)
        case, timings = time_candidates(head, device)
        kept = fastest_tiles(timings)
        console.print(timings_table(case, timings, kept))
        if kept is None:
            failed += 1
        else:
            save_winner(path, case, kept)
    console.print(f"{failed} without usual tiles that run" if failed else f"written to {path}", soft_wrap=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
