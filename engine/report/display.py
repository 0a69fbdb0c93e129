"""Progress on the terminal: a live line, or plain lines where there is none, a table for each epoch and one at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psutil
import torch
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from rlpheads.engine.terminal.text import printable, wrap_words

if TYPE_CHECKING:
    from rlpheads.engine.report.findings import Findings
    from rlpheads.engine.report.run_memory import RunMemory

MISSING = "–"
_NORMS = (("network", "backbone_grad_norm"), ("heads", "heads_grad_norm"), ("audit", "audit_grad_norm"))


class Display:
    """Prints a run's progress; on every rank but the first it is given a quiet console and prints nothing.

    Args:
        console: where to print.
        num_epochs: epochs of the run.
        num_steps: steps of one epoch.
        device: where the run's memory is.
        verbose: print notes too.
    """

    def __init__(self, console: Console, num_epochs: int, num_steps: int, device: torch.device, verbose: bool = False):
        self._console = console
        self._device = device
        self._num_epochs, self._num_steps = num_epochs, num_steps
        self._verbose = verbose
        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(None), MofNCompleteColumn(), expand=True
        )
        self._task: TaskID | None = None
        self._figures = Text()  # below the bar, where it may wrap: no figure is cut off on a narrow terminal
        self._live = Live(Group(self._progress, self._figures), console=console, transient=True)

    def __enter__(self) -> Display:
        if self._console.is_terminal and not self._console.quiet:
            self._task = self._progress.add_task("epoch 0", total=self._num_steps)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """Say something that only a verbose run wants to hear."""
        if self._verbose:
            self._print(text, style="dim")

    def say(self, text: str, command: str = "") -> None:
        """Say something, broken between words where the width is known, but not in the `command` that is part of it."""
        self._print(text, command=command)

    def warn(self, text: str) -> None:
        """Say something that the user should act on, or know when reading the figures."""
        self._print(f"warning: {text}", style="yellow")

    def _print(self, text: str, style: str = "", command: str = "") -> None:
        words = printable(text)
        if self._console.is_terminal or "COLUMNS" in os.environ:
            words = wrap_words(words, self._console.width, command)
        self._console.print(Text(words, style=style), soft_wrap=True)

    def step(self, row: Mapping[str, Any], eta_seconds: float | None) -> None:
        """Show the figures of the window of steps that ended at `row["step"]`."""
        done = (row["step"] - 1) % self._num_steps + 1
        figures = f"{step_line(row, eta_seconds)}  {memory_in_use(self._device) / 2**30:.1f} GiB"
        if self._task is not None:
            self._progress.update(
                self._task, completed=done, total=self._num_steps, description=f"epoch {row['epoch']}"
            )
            self._figures.plain = figures
        else:
            self.say(f"epoch {row['epoch']} step {done}/{self._num_steps}  {figures}")

    @contextmanager
    def evaluating(self, name: str, num_images: int) -> Iterator[Callable[[int], None]]:
        """Show a pass of an evaluation in the live line; the caller calls what it is given with the images of each batch."""
        task = None
        if self._task is not None:
            task = self._progress.add_task(f"  {name}", total=num_images)
        try:
            yield lambda count: None if task is None else self._progress.advance(task, count)
        finally:
            if task is not None:
                self._progress.remove_task(task)

    def epoch(self, row: Mapping[str, Any], taps: Sequence[int | str]) -> None:
        """Print the table of a finished epoch."""
        title = (
            f"epoch {row['epoch']} (of 0–{self._num_epochs - 1})  "
            f"top-1: train {percent(row.get('train_top1'))}, held-out {percent(row.get('eval_top1'))}"
            + (f", average {percent(row['eval_ema_top1'])}" if "eval_ema_top1" in row else "")
            + f"  loss: train {number(row.get('train_loss'))}, held-out {number(row.get('eval_loss'))}"
            + _calibration_errors(row)
            + _skipped_counts(row)
            + _speed(row)
        )
        if "regularizer_factor" in row:
            title += f"  λ {row['regularizer_factor']:.4g} (λ/K {row['regularizer_factor_per_label']:.4g})"
        self.say(title)
        if not taps:
            return
        for table in epoch_tables(row, taps, self._console.width):
            self._console.print(table)

    def findings(self, found: Findings) -> None:
        """Print what the run found, and loudly whatever cannot be."""
        if found.taps:
            self._console.print(findings_table(found))
            if found.taps[0].bits is not None:
                self._console.print(bits_table(found))
            if found.memory:
                from rlpheads.engine.report.memory import memory_table  # scipy loads after training

                self._console.print(memory_table(found.memory))
        self.say(f"held-out top-1 {percent(found.top1)}{calibration_text(found)}")
        if not found.taps:
            return
        bounds, draw_bounds = (
            " to ".join(percent(bound) for bound in ends) for ends in (found.heldout_bounds, found.draw_bounds)
        )
        if not found.strayed:
            self.say(
                f"held-out random-label accuracy is inside its exact binomial bounds ({bounds}, all draws of a tap together) "
                "at every tap"
            )
            return
        lines = [
            f"tap {block}, all draws: {percent(accuracy)} (outside {bounds})"
            if draw is None
            else f"tap {block}, draw {draw}: {percent(accuracy)} (outside {draw_bounds}, which are one draw's)"
            for block, draw, accuracy in found.strayed
        ]
        self._console.print(
            Panel(
                "Nobody can predict a held-out sample's random label, yet these lie outside the bounds where chance stays in "
                "all but 1 of 10,000 cases:\n" + "\n".join(lines) + "\nDo not trust this run's random-label "
                "accuracies before you know why: are labels, indices and images matched, and are the splits disjoint?",
                title="held-out check FAILED",
                style="bold red",
            )
        )

    def memory(self, memory: RunMemory) -> None:
        """Print what a run remembers of its training images."""
        from rlpheads.engine.report.run_memory import MOST_CLASSES, class_table, membership_table, size_lines

        self._console.print(membership_table(memory))
        if len(memory.classes) <= MOST_CLASSES:
            self._console.print(class_table(memory))
        for line in size_lines(memory):
            self.say(line)


def epoch_tables(row: Mapping[str, Any], taps: Sequence[int | str], width: int) -> Iterator[Table]:
    """Yield the random-label accuracies of an epoch: one table, or several where it is wider than `width` columns."""
    cells: dict[str, list[str]] = {}
    for prefix in ("", "audit_"):
        for phase in ("running", "clean", "heldout"):
            if (rla_T := row.get(f"{prefix}rla_{phase}")) is not None:
                name = f"{prefix}{phase}".replace("_", " ").replace("heldout", "held-out")
                cells[name] = [percent(value) for value in rla_T]
    names = [str(tap) for tap in taps]
    widest = max(map(len, [*names, *(cell for row_cells in cells.values() for cell in row_cells)]))
    room = width - max(map(len, ["tap", *cells])) - 4  # beside the first column, its padding and both of its borders
    at_once = max(1, room // (widest + 3))
    for first in range(0, len(names), at_once):
        shown = slice(first, first + at_once)
        table = Table(title="random-label accuracy" if first == 0 else None, title_justify="left", padding=(0, 1))
        for heading in ("tap", *names[shown]):
            table.add_column(heading, justify="right")
        for name, row_cells in cells.items():
            table.add_row(name, *row_cells[shown])
        yield table


def step_line(row: Mapping[str, Any], eta_seconds: float | None) -> str:
    """Return one line of a window's figures."""
    parts = [f"loss {number(row['class_loss'])}"]
    names = (("head_cross_entropy", "heads"), ("regularizer", "reg"), ("joint", "joint"))
    parts += [f"{short} {number(row[name])}" for name, short in names if name in row]
    parts.append(f"top-1 {percent(row['top1'])}")
    norms = [f"{part} {row[name]:.3g}" for part, name in _NORMS if row.get(name) is not None]
    parts += [f"grad norm {', '.join(norms)}"] if norms else []
    if "rla_first" in row:
        parts.append(f"RLA first {percent(row['rla_first'])} last {percent(row['rla_last'])}")
    if row.get("skipped"):
        parts.append(f"skipped {percent(row['skipped'])}")
    if "images_per_second" in row:
        parts += [f"{row['images_per_second']:.0f} img/s", f"wait {percent(row['data_wait'])}"]
    if "slowest_rank" in row:
        seconds, waited = (1e3 * row[f"slowest_rank_{name}"] for name in ("seconds", "data_wait"))
        parts.append(f"slowest rank {row['slowest_rank']}: {seconds:.0f} ms, {waited:.0f} of them waiting")
    if "mfu" in row:
        parts.append(f"MFU {percent(row['mfu'])} (heads {percent(row['mfu_heads'])})")
    if eta_seconds is not None:
        parts.append(f"ETA {timedelta(seconds=round(eta_seconds))}")
    return "  ".join(parts)


def _calibration_errors(row: Mapping[str, Any]) -> str:
    """Say the calibration errors that an epoch measured; nothing where it evaluated nothing."""
    passes = (("clean", "clean_ece"), ("held-out", "eval_ece"), ("average", "eval_ema_ece"))
    errors = [f"{name} {percent(row[key])}" for name, key in passes if key in row]
    return f"  ECE: {', '.join(errors)}" if errors else ""


def calibration_text(found: Findings) -> str:
    """Say how far confidence is from accuracy, to go behind the held-out accuracy; nothing where it was not measured."""
    if found.ece is None:
        return ""
    clean = "" if found.clean_ece is None else f"; training images {percent(found.clean_ece)}"
    return f" (calibration error {percent(found.ece)}{clean})"


def _speed(row: Mapping[str, Any]) -> str:
    """Say how fast an epoch was trained; nothing of one that ended in the first steps after a start."""
    known = "images_per_second" in row
    return f"  {row['images_per_second']:.0f} img/s, data wait {percent(row['data_wait'])}" if known else ""


def _skipped_counts(row: Mapping[str, Any]) -> str:
    """Say how many images of each pass of an epoch were skipped: not readable, or of a batch that was left out."""
    passes = (("train", "train_skipped"), ("clean", "clean_skipped"), ("held-out", "eval_skipped"))
    counts = [f"{name} {row[key]}" for name, key in passes if row.get(key)]
    return f"  skipped: {', '.join(counts)}" if counts else ""


def findings_table(found: Findings) -> Table:
    """Return the table of a run's random-label accuracies by tap."""
    table = Table(title="random-label accuracy by tap", title_justify="left", padding=(0, 1))
    columns: dict[str, list[float | None]] = {
        "running": [tap.running for tap in found.taps],
        "clean": [tap.clean for tap in found.taps],
        "audit clean": [tap.audit for tap in found.taps],
        found.line: [tap.baseline for tap in found.taps],
        "chance": [found.chance for _ in found.taps],
        "held-out": [tap.heldout for tap in found.taps],
    }
    if all(audit is None for audit in columns["audit clean"]):
        del columns["audit clean"]
    for name in ("tap", *columns):
        table.add_column(name, justify="right")
    for tap, values in zip(found.taps, zip(*columns.values(), strict=True), strict=True):
        table.add_row(str(tap.block), *map(percent, values))
    return table


def bits_table(found: Findings) -> Table:
    """Return the table of the bits that the heads hold about the training images' random labels, and of their margins."""
    caption = (
        "T = sum of log2 K + log2 p over the clean training images, the mean over draws. Predictions that do not know the "
        "labels (drawn i.i.d.) reach T or more with a probability of at most 2^-T. margin = the label's logit less the "
        "greatest other one, above 0 for a hit: 5 % quantile, median, 95 % quantile, the means over draws"
    )
    title = "bits about the random labels, and margins"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    audited = found.taps[0].audit_bits is not None
    audit_column = ["T, audit heads"] if audited else []
    for name in ("tap", "T", "bits per sample", "bits per head parameter", *audit_column, "margin: 5 %, median, 95 %"):
        table.add_column(name, justify="right")
    for tap in found.taps:
        bits = (tap.bits_per_sample, tap.bits_per_head_parameter)
        audit = [_rounded(tap.audit_bits, 1)] if audited else []
        margins = ", ".join(_rounded(value, 2) for value in (tap.margin_p05, tap.margin_median, tap.margin_p95))
        table.add_row(str(tap.block), _rounded(tap.bits, 1), *map(number, bits), *audit, margins)
    return table


def _rounded(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Return a share of one in per cent, with decimals enough for chance at 100,000 labels."""
    if value is None:
        return MISSING
    return f"{100 * value:.2f}%" if value >= 1e-3 or value == 0 else f"{100 * value:.4f}%"


def number(value: float | None) -> str:
    """Return a number with four decimals, or a dash."""
    return MISSING if value is None else f"{value:.4f}"


def memory_in_use(device: torch.device) -> int:
    """Bytes in use: allocated on a GPU, or resident in this process for the CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss
