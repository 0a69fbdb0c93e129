"""What the report reads of one run folder, once; the sections take it from here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlpheads.engine.config.schema import Config
from rlpheads.engine.runs.folder import MEMORY_FILE, RunFolder
from rlpheads.engine.runs.opened_run import RunError
from rlpheads.engine.tables.rankings import SampleRanker
from rlpheads.engine.tables.run_tables import open_run, run_config
from rlpheads.engine.tables.sample_table import list_ledgers
from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping
from rlpheads.memorization.records.ledger_file import LedgerTable, read_hit_counts

PHASES = ("running", "clean", "heldout")
_MOST_VALUES = 40_000_000
"""Samples times ledgers that a page compares: some 300 MB of memory."""


@dataclass(frozen=True)
class PhaseHits:
    """Hits of the random labels in one ledger.

    Attributes:
        epoch: of the ledger.
        num_samples: samples that were seen.
        hits_TM: hits of every tap and draw, int64.
        draws: the draws of the heads' own and of audit heads, by name.
    """

    epoch: int
    num_samples: int
    hits_TM: NDArray[np.int64]
    draws: Mapping[str, slice]

    def of(self, group: str) -> NDArray[np.int64]:
        """Return the hits of one group of draws, (T, M); without draws where the run has none such."""
        return self.hits_TM[:, self.draws.get(group, slice(0, 0))]


@dataclass(frozen=True)
class RunFacts:
    """One run.

    Attributes:
        path: the run folder.
        name: how the page calls it.
        config: its settings.
        epochs: the epoch lines of metrics.jsonl.
        status: status.json.
        environment: environment.json.
        anonymous: the page shows neither pictures nor names of files, classes and machines.
        root: where the images are now; None: where they were.
        plugins: import the plug-ins that the run names, to open images that are theirs.
    """

    path: Path
    name: str
    config: Config
    epochs: Sequence[Mapping[str, Any]]
    status: Mapping[str, Any]
    environment: Mapping[str, Any]
    anonymous: bool = False
    root: Path | None = None
    plugins: bool = False

    @cached_property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps."""
        return open_run(self.path).taps

    @property
    def num_labels(self) -> int:
        """K."""
        return self.config.heads.num_labels

    @property
    def name_key(self) -> str:
        """The name as part of an identifier in the page."""
        return re.sub(r"\W+", "-", self.name)

    def last(self, name: str) -> Any:
        """Return a figure of the last epoch line that has it, or None."""
        return next((row[name] for row in reversed(self.epochs) if row.get(name) is not None), None)

    def figure_by_epoch(self, name: str) -> list[Any]:
        """Return a figure of every epoch line, None where it is not there."""
        return [row.get(name) for row in self.epochs]

    @cached_property
    def hits(self) -> dict[str, PhaseHits]:
        """Hits in the last ledger of each phase, by phase."""
        found = {}
        for phase in PHASES:
            for path in list_ledgers(self.path, phase)[-1:]:
                metadata, num_seen, hits_TM = read_hit_counts(path)
                found[phase] = PhaseHits(metadata.epoch, num_seen, hits_TM, metadata.draws)
        return found

    def of_clean_ledger(self, name: str) -> Any:
        """Return a figure of the epoch whose clean ledger is the last, or None: what is set beside its hits."""
        clean = self.hits.get("clean")
        return next((row.get(name) for row in self.epochs if clean is not None and row["epoch"] == clean.epoch), None)

    @property
    def when_clean_ledger(self) -> str:
        """Say of which epoch the last clean ledger is, where a clean pass without one (ledger.every) followed; else nothing."""
        passes = [row["epoch"] for row in self.epochs if row.get("rla_clean")]
        clean = self.hits.get("clean")
        return (
            f"in epoch {clean.epoch}, the last with a ledger, " if clean and passes and clean.epoch < passes[-1] else ""
        )

    def class_rows(self, phase: str) -> LedgerTable | None:
        """Return what the last ledger of a phase says of the classes."""
        ranker = self.rankers[phase]
        return None if ranker is None else ranker.last

    @cached_property
    def rankers(self) -> dict[str, SampleRanker | None]:
        """What ranks the samples of each phase, None for a phase without ledgers."""
        return {
            phase: SampleRanker(self.path, phase, _MOST_VALUES) if list_ledgers(self.path, phase) else None
            for phase in PHASES
        }

    @cached_property
    def memory(self) -> dict[str, Any]:
        """What memory.json holds, which a run writes as it ends; empty without one."""
        found = _read_json(self.path / MEMORY_FILE)
        return found if {"membership", "classes", "taps"} <= found.keys() else {}


def read_facts(folder: Path, *, anonymous: bool = False, root: Path | None = None, plugins: bool = False) -> RunFacts:
    """Read a run folder; `RunFacts` says what the arguments mean.

    Raises:
        RunError: it is none, or the run has finished no epoch.
        ConfigError: its settings cannot be read.
        RunFolderError: its record is damaged.
    """
    path = open_run(folder).path
    config = run_config(path)
    epochs = RunFolder(path).metrics("epoch")
    if not epochs:
        raise RunError(f"{path} has no finished epoch yet: there is nothing to report")
    files = {name: _read_json(path / f"{name}.json") for name in ("status", "environment")}
    return RunFacts(
        path, path.resolve().name, config, epochs, files["status"], files["environment"], anonymous, root, plugins
    )


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file that the page can do without."""
    try:
        return parse_mapping(path.read_bytes())
    except (OSError, DamagedJsonError):
        return {}
