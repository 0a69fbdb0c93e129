"""How many random labels a run has: settled once, when it begins, from its images and the widths of its taps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rlpheads.engine.config import Config
from rlpheads.engine.config_files import read_config_file
from rlpheads.engine.models import planned_tap_dims
from rlpheads.engine.resume import Sources
from rlpheads.memorization.baselines import auto_labels, warning_for


class SettledLabels(NamedTuple):
    """A configuration whose heads.labels is a number, and what the user should be told about it."""

    config: Config
    warnings: tuple[str, ...]


def settle_labels(config: Config, sources: Sources, folder: Path) -> SettledLabels:
    """Replace `heads.labels: auto` by a number; say where the heads alone fit nearly everything.

    The choice is `rlpheads.memorization.baselines.auto_labels` for the training images and the widest tap, whose heads
    have the most parameters. A run that was begun keeps the number that it was begun with, whatever would be chosen now.

    Args:
        config: settings of the run.
        sources: its images.
        folder: the run folder, which may hold the settings of a run that goes on.
    """
    dims = planned_tap_dims(config, len(sources.train.manifest.classes))
    if not dims:
        return SettledLabels(config, ())
    num_samples, num_features = sources.train.manifest.num_samples, max(dims)
    if config.heads.labels != "auto":
        warning = warning_for(config.heads.labels, num_samples, num_features)
        return SettledLabels(config, _told(warning))
    choice = auto_labels(num_samples, num_features)
    begun = _begun_with(folder)
    if begun not in (None, choice.num_labels):
        return settle_labels(_with_labels(config, begun), sources, folder)
    return SettledLabels(_with_labels(config, choice.num_labels), _told(choice.warning))


def _begun_with(folder: Path) -> int | None:
    """Return K of the run in this folder, if there is one."""
    path = folder / "config.yaml"
    return read_config_file(str(path))["heads"]["labels"] if path.exists() else None


def _with_labels(config: Config, num_labels: int) -> Config:
    return replace(config, heads=replace(config.heads, labels=num_labels))


def _told(warning: str | None) -> tuple[str, ...]:
    return () if warning is None else (f"heads.labels: {warning}",)
