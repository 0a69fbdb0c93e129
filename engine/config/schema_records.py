"""The parts of a configuration that say what a run measures and keeps beside training, and how often."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EvalConfig:
    """What is measured between epochs."""

    every: int = 1
    """Epochs between evaluations on the held-out split."""
    clean_every: int = 1
    """Epochs between passes over the training set without augmentation and with weights at rest; 0: at the end only."""
    batch_size: int | None = None
    """Global batch of an evaluation; null: the training batch."""


@dataclass(frozen=True)
class LedgerConfig:
    """The per-sample record."""

    every: int = 1
    """Epochs between written ledgers; the last epoch is always written; 0: the last only."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What a run can be continued from."""

    every: int = 1
    """Epochs between checkpoints; the last epoch and a stop signal always write one."""
    keep: int = 2
    """Newest checkpoints that are kept."""
