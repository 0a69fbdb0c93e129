"""The last lines of a run: what was learned, where the figures are, and which commands go on from here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlpheads.engine.config.schema import Config
from rlpheads.engine.report.display import calibration_text, percent
from rlpheads.engine.report.findings import Findings, TapFinding
from rlpheads.engine.training.loop import Outcome


def closing_lines(outcome: Outcome, config: Config, folder: Path) -> Iterator[str]:
    """Yield the last lines that a run of these settings prints about itself.

    Args:
        outcome: how the run ended.
        config: its settings.
        folder: the run folder.
    """
    yield f"{outcome.status}: {outcome.reason}; everything is in {folder}"
    if outcome.status == "requeue":
        yield "next: the same command again, which goes on from this very sample"
    if outcome.findings is not None:
        yield f"learned: {_learned(outcome.findings)}"
        yield f"figures: {_places(outcome.findings, config, folder)}"
    if config.log.wandb == "offline":
        yield f"next: wandb sync {folder / 'wandb'}/offline-run-* sends the figures to W&B"
    if outcome.findings is not None:
        yield from _commands(outcome.findings, folder)


def _learned(found: Findings) -> str:
    text = f"held-out top-1 {percent(found.top1)}{calibration_text(found)}"
    measured = [(value, tap) for tap in found.taps if (value := _accuracy(tap)) is not None]
    if not measured:
        return text
    value, tap = max(measured, key=lambda pair: pair[0])
    beside = f"a head alone: {percent(tap.baseline)}; chance: {percent(found.chance)}"
    return f"{text}; random-label accuracy at most {percent(value)}, at tap {tap.block} ({beside})"


def _accuracy(tap: TapFinding) -> float | None:
    """Return the accuracy that a regulariser cannot hide, where it was measured."""
    return next((value for value in (tap.audit, tap.clean, tap.running) if value is not None), None)


def _places(found: Findings, config: Config, folder: Path) -> str:
    places = []
    if found.taps:
        places.append(f"{folder / 'figures' / 'rla_by_depth.png'} and rla_by_epoch.png")
    summary = folder / "summary.csv"
    places.append(f"by epoch {summary}" if summary.exists() else f"by step {folder / 'metrics.jsonl'}")
    if config.log.tensorboard:
        places.append(f"curves: tensorboard --logdir {folder / 'tensorboard'}")
    return "; ".join(places)


def _commands(found: Findings, folder: Path) -> Iterator[str]:
    if found.taps:
        yield f"next: rlpheads audit {folder} says what the frozen features hold, with intervals"
    if (folder / "canaries.parquet").exists():
        yield f"next: rlpheads canaries {folder} says which measure finds the planted images"
