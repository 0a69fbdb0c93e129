"""Benchmark of random_label_loss: forward and backward of both routes, against eager, compiled and library losses.

python benchmarks/bench_random_label_loss.py             every shape and contender (an hour on two cores)
python benchmarks/bench_random_label_loss.py --figures   100,000 labels and twelve heads, few contenders (ten minutes)
python benchmarks/bench_random_label_loss.py --quick     small shapes, to see that it runs (a minute)

Contenders take turns in one process, each from cleared gradients to cleared gradients; medians, and ratios within a
round. The floor is three bare whole matrix products of the same shapes, dtype and threads, each in the fastest of two
layouts into preallocated buffers and, on a CPU, oneDNN's. Extra memory is the peak of forward and backward in a fresh
process, less the two gradients. Errors are ‖g − g64‖/‖g64‖ against float64. Results go to
benchmarks/results/random_label_loss_DEVICE_DATE; an interrupted run resumes where it stopped.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from loss_contenders import (
    FLOOR_OF,
    REGULARIZER,
    THREE_PRODUCTS,
    Contender,
    Problem,
    contenders,
    floors,
    floors_together,
    make_problem,
    ours,
)
from measuring import Results, in_fresh_process, interleave, peak_extra_bytes, ratio, time_once
from rich.console import Console
from rich.table import Table

from rlpheads.kernels.random_label_loss import random_label_losses

SLOW = "F.linear_cross_entropy, chunks"  # at its default: a row at a time where K/D is large, timed once only
FIGURES = ("ours", "ours, slabs", "ours, measuring only", "two losses, eager", SLOW)
WITH_MEMORY = ("ours", "ours, slabs", "two losses, eager", "F.linear_cross_entropy")
MOST_LOGITS_IN_FLOAT64 = 2**25
NUM_HEADS, HEAD_ROWS, HEAD_LABELS = 12, 64, 10_000


@dataclass(frozen=True)
class Settings:
    """What to measure, and how often."""

    device: str
    dtype: torch.dtype
    rows: tuple[int, ...] = (64, 128, 256, 512, 1024)
    labels: tuple[int, ...] = (1000, 10_000, 100_000)
    num_features: int = 768
    rounds: int = 5
    only: tuple[str, ...] | None = None
    many_heads: bool = True
    """Also twelve heads in one call."""

    def problem(self, num_rows: int, num_labels: int) -> Problem:
        """A problem of this size on the device."""
        return make_problem(num_rows, num_labels, self.num_features, self.dtype, self.device)


def run(contender: Contender, problem: Problem) -> None:
    """Forward and backward, from cleared gradients."""
    problem.clear()
    contender.forward(problem).backward()


def measure_shape(settings: Settings, num_rows: int, num_labels: int) -> dict[str, Any]:
    """Seconds of every contender and of the bare products, all in turn."""
    problem = settings.problem(num_rows, num_labels)
    found = contenders(settings.device, num_rows, num_labels)
    chosen = {name: found[name] for name in found if settings.only is None or name in settings.only}
    forward: dict[str, list[float]] = {name: [] for name in chosen}

    def timed(name: str) -> Callable[[], None]:
        def call() -> None:
            losses = []
            seconds = time_once(lambda: losses.append(chosen[name].forward(problem)), settings.device)
            forward[name].append(seconds)
            losses[0].backward()
            problem.clear()  # each pays for freeing its own gradients, as a step does, and nobody for another's

        return call

    once = {name: timed(name) for name in chosen if name == SLOW}
    often = {name: timed(name) for name in chosen if name != SLOW}
    seconds = interleave({**often, **floors(problem)}, settings.rounds, device=settings.device)
    seconds |= {name: [time_once(call, settings.device)] for name, call in once.items()}
    floor_seconds = {name: seconds.pop(name) for name in floors(problem)}
    return {
        "seconds": seconds,
        "forward_seconds": {name: times[-len(seconds[name]) :] for name, times in forward.items()},
        "floor_seconds": floor_seconds,
        "errors": errors(chosen, problem),
        "both_routes": {name: contender.both_routes for name, contender in chosen.items()},
    }


def errors(chosen: dict[str, Contender], problem: Problem) -> dict[str, dict[str, float]]:
    """Relative errors of the gradients against float64, where its logits fit."""
    if len(problem.features_BD) * len(problem.weight_KD) > MOST_LOGITS_IN_FLOAT64:
        return {}
    exact = replace(
        problem,
        features_BD=problem.features_BD.detach().double().requires_grad_(),
        weight_KD=problem.weight_KD.detach().double().requires_grad_(),
    )
    run(ours("reference"), exact)
    measured = {}
    for name, contender in chosen.items():
        if name in (SLOW, "ours, measuring only"):
            continue
        run(contender, problem)
        measured[name] = {"weight": relative_error(problem.weight_KD.grad, exact.weight_KD.grad)}
        if contender.both_routes:
            measured[name]["features"] = relative_error(problem.features_BD.grad, exact.features_BD.grad)
    return measured


def relative_error(value: torch.Tensor | None, truth: torch.Tensor | None) -> float:
    assert value is not None
    assert truth is not None
    return float((value.double() - truth).norm() / truth.norm())


def measure_memory(name: str, settings: Settings, num_threads: int, num_rows: int, num_labels: int) -> dict[str, int]:
    """Extra bytes of a contender's forward and backward; to be called in a fresh process."""
    torch.set_num_threads(num_threads)
    small, problem = settings.problem(8, 300), settings.problem(num_rows, num_labels)
    contender = contenders(settings.device, num_rows, num_labels)[name]
    for _ in range(2):  # libraries load, threads start
        run(contender, small)
    small.clear()
    peak = peak_extra_bytes(lambda: run(contender, problem), settings.device)
    gradients = [tensor.grad for tensor in (problem.features_BD, problem.weight_KD) if tensor.grad is not None]
    return {"extra_bytes": peak - sum(gradient.numel() * gradient.element_size() for gradient in gradients)}


def measure_many_heads(settings: Settings) -> dict[str, Any]:
    """Seconds of twelve heads in one call, and of the bare products of one."""
    problems = [settings.problem(HEAD_ROWS, HEAD_LABELS) for _ in range(NUM_HEADS)]

    def all_heads() -> None:
        losses = random_label_losses(
            [problem.features_BD for problem in problems],
            [problem.weight_KD for problem in problems],
            [problem.labels_B for problem in problems],
            regularizer=REGULARIZER,
        )
        assert losses.regularizer_HB is not None
        (losses.cross_entropy_HB.mean(1) + losses.regularizer_HB.mean(1)).sum().backward()
        for problem in problems:
            problem.clear()

    seconds = interleave({"ours": all_heads, **floors_together(problems)}, 3 * settings.rounds, device=settings.device)
    return {"seconds": {"ours": seconds.pop("ours")}, "floor_seconds": seconds}


def floor_of(name: str, floor_seconds: dict[str, list[float]]) -> list[float]:
    """Seconds of a contender's bare products in every round, each in the layout with the smaller median."""

    def product(kind: str) -> list[float]:
        return min((times for layout, times in floor_seconds.items() if layout.startswith(kind)), key=median)

    return [sum(times) for times in zip(*map(product, FLOOR_OF.get(name, THREE_PRODUCTS)), strict=True)]


def rows_of(line: dict[str, Any], memory: dict[str, int]) -> list[dict[str, Any]]:
    """The figures of one shape, one row for each contender."""
    eager = line["seconds"].get("two losses, eager")
    rows = []
    for name, times in line["seconds"].items():
        floor = floor_of(name, line["floor_seconds"])
        forward = line.get("forward_seconds", {}).get(name)
        rows.append(
            {
                "contender": name,
                "both_routes": line.get("both_routes", {}).get(name, True),
                "seconds": median(times),
                "forward_seconds": median(forward) if forward else None,
                "backward_seconds": median(times) - median(forward) if forward else None,
                "floor_seconds": median(floor),
                "ratio_to_floor": ratio(times, floor[: len(times)]),
                "eager_over_this": median(eager) / median(times) if eager else None,
                "extra_bytes": memory.get(name),
                "errors": line.get("errors", {}).get(name, {}),
            }
        )
    return rows


def table_of(title: str, rows: list[dict[str, Any]]) -> Table:
    """The figures of one shape, to be read."""

    def shown(value: float | None, text: str) -> str:
        return "" if value is None else text.format(value)

    table = Table(title=title, title_justify="left")
    for heading in (
        "contender",
        "forward ms",
        "backward ms",
        "× its floor",
        "eager ÷ this",
        "extra MB",
        "error dW",
        "dX",
    ):
        table.add_column(heading, justify="left" if heading == "contender" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["contender"] + ("" if row["both_routes"] else " *"),
            shown(row["forward_seconds"] and 1e3 * row["forward_seconds"], "{:.1f}"),
            shown(row["backward_seconds"] and 1e3 * row["backward_seconds"], "{:.1f}"),
            shown(row["ratio_to_floor"], "{:.3f}"),
            shown(row["eager_over_this"], "{:.2f}"),
            shown(row["extra_bytes"] and row["extra_bytes"] / 1e6, "{:.0f}"),
            shown(row["errors"].get("weight"), "{:.1e}"),
            shown(row["errors"].get("features"), "{:.1e}"),
        )
    return table


def measure_everything(settings: Settings, results: Results, console: Console) -> None:
    """Measure what is missing, printing each shape as it is done, and write the tables down."""
    dtype = str(settings.dtype).removeprefix("torch.")
    report = Console(record=True, width=140, file=io.StringIO())
    report.print("* cross-entropy only, one gradient for both sides")
    summary: list[dict[str, Any]] = []

    def show(title: str, figures: list[dict[str, Any]], **case: Any) -> None:
        summary.extend({**case, **row} for row in figures)
        for target in (console, report):
            target.print(table_of(title, figures))

    common = {"dtype": dtype, "threads": torch.get_num_threads(), "features": settings.num_features}
    for num_labels in settings.labels:
        for num_rows in settings.rows:
            case = {**common, "labels": num_labels, "rows": num_rows}
            only = list(settings.only or ["all"])
            start = time.perf_counter()
            line = results.measure(
                partial(measure_shape, settings, num_rows, num_labels), **case, rounds=settings.rounds, contenders=only
            )
            memory = {}
            for name in WITH_MEMORY:
                if name in line["seconds"]:
                    arguments = (name, settings, torch.get_num_threads(), num_rows, num_labels)
                    found = results.measure(partial(in_fresh_process, measure_memory, *arguments), **case, memory=name)
                    memory[name] = found["extra_bytes"]
            title = f"B={num_rows}, K={num_labels:,}, D={settings.num_features}, {dtype}, {settings.device}, "
            title += f"{torch.get_num_threads()} threads ({time.perf_counter() - start:.0f} s)"
            show(title, rows_of(line, memory), **case)
    if settings.many_heads:
        line = results.measure(lambda: measure_many_heads(settings), **common, heads=NUM_HEADS, rounds=settings.rounds)
        title = f"{NUM_HEADS} heads in one call, B={HEAD_ROWS}, K={HEAD_LABELS:,}; the floor is that of all heads"
        show(title, rows_of(line, {}), **common, heads=NUM_HEADS)
    results.write("table.txt", report.export_text())
    results.write_json("summary.json", summary)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="small shapes, one round")
    mode.add_argument(
        "--figures", action="store_true", help="the shapes and contenders of the figures that are asked for"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, help="torch's threads; default: its own choice")
    parser.add_argument("--rows", type=int, nargs="+", help="only these numbers of rows")
    parser.add_argument("--labels", type=int, nargs="+", help="only these numbers of labels")
    parser.add_argument("--features", type=int, default=768, help="width of the features")
    parser.add_argument("--single", action="store_true", help="leave out the twelve heads in one call")
    parser.add_argument("--rounds", type=int, help="rounds that count; default: 5, with --figures 7")
    parser.add_argument("--out", type=Path, help="folder of the results")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = Settings(arguments.device, getattr(torch, arguments.dtype))
    if arguments.quick:
        settings = replace(settings, rows=(64,), labels=(1000, 10_000), rounds=1)
    if arguments.figures:
        settings = replace(settings, rows=(64, 128, 256, 512), labels=(100_000,), rounds=7, only=FIGURES)
    settings = replace(
        settings,
        rows=tuple(arguments.rows or settings.rows),
        labels=tuple(arguments.labels or settings.labels),
        num_features=arguments.features,
        rounds=arguments.rounds or settings.rounds,
        many_heads=not arguments.single,
    )
    results = Results("random_label_loss", settings.device, arguments.out)
    console = Console(width=None if sys.stdout.isatty() else 140)
    measure_everything(settings, results, console)
    console.print(f"Everything is in {results.folder}")


if __name__ == "__main__":
    main()
