"""What a record of a run beside metrics.jsonl is asked for, and which curves it puts first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class RunLogError(RuntimeError):
    """A record that was asked for cannot be kept; the message says what to do."""


class Tracker(Protocol):
    """A record beside metrics.jsonl."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Record the figures of one row."""

    def show(self, step: int, drawings: Mapping[str, Path], epochs: Sequence[Mapping[str, Any]]) -> None:
        """Show the drawings that a run ends with, PNG files by name; and epoch lines as charts, where there are none."""

    def close(self) -> None:
        """Finish the record."""


def first_curves(taps: Sequence[int | str]) -> dict[str, str]:
    """Return the curves that matter first, by what they are called in words: accuracy, and memory at the last tap."""
    curves = {"held-out accuracy": "epoch/eval_top1"}
    return curves | ({f"random-label accuracy, tap {taps[-1]}": f"epoch/rla_clean/{taps[-1]}"} if taps else {})


def charts(taps: Sequence[int | str]) -> dict[str, dict[str, list[str]]]:
    """Return sections of charts, each chart with the figures (`named_figures`) that it shows together.

    The first section has the curves that matter first with what they are read beside; the second all taps in one chart.
    """
    accuracy = {"accuracy of the classes": [f"epoch/{name}_top1" for name in ("eval", "clean", "train")]}
    if not taps:
        return {"first": accuracy}
    beside = ("rla_clean", "audit_rla_clean", "fresh_refit_clean", "rla_heldout")
    memory = {f"random-label accuracy, tap {taps[-1]}": [f"epoch/{name}/{taps[-1]}" for name in beside]}
    by_depth = {words: [f"epoch/{name}/{tap}" for tap in taps] for name, words in ALL_TAPS.items()}
    return {"first": accuracy | memory, "random labels, all taps": by_depth}


ALL_TAPS = {
    "rla_clean": "accuracy, clean pass",
    "audit_rla_clean": "accuracy of audit heads, clean pass",
    "fresh_refit_clean": "refit on fresh labels",
    "rla_running": "accuracy while training",
    "rla_heldout": "held-out accuracy (the check)",
    "bits_per_sample_clean": "bits a sample, clean pass",
}
"""Figures of epoch lines, a list over the taps each, and what their chart is called."""
