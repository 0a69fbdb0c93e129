"""A run folder as tables: `open_run(RUN)` reads what a run wrote, through the readers of its files, into Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa

from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.errors import nearest
from rlpheads.engine.config.paths import expand_path
from rlpheads.engine.config.schema import Config
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.opened_run import RunError, describe_missing_run
from rlpheads.engine.tables.figure_rows import epoch_rows, figure_table, ledger_rows
from rlpheads.engine.tables.sample_table import list_ledgers, sample_table
from rlpheads.memorization.records.canary_file import CanaryError
from rlpheads.memorization.records.ledger_file import LedgerError, read_ledger, read_ledger_metadata
from rlpheads.memorization.records.sample_file import SampleFileError

Phase = Literal["running", "clean", "heldout"]
TABLE_ERRORS = (LedgerError, SampleFileError, CanaryError)
"""What keeps the files of a run folder from being read, beside a UserError, each with the one message that its user needs."""


@dataclass(frozen=True)
class RunTables:
    """The tables of one run folder. Each call reads the files anew, so that a run in progress can be watched.

    All are `pyarrow.Table`: `.to_pandas()` where pandas is installed, `polars.from_arrow(table)` where polars is.

    Attributes:
        path: the run folder.
    """

    path: Path

    def epochs(self) -> pa.Table:
        """Return the figures of all epochs, averages over draws, one number a row.

        Columns: `epoch`, `step`, `phase`, `tap`, `heads`, `draw` (null), `figure`, `value`, which
        `rlpheads.engine.tables.figure_rows.FigureRow` explains.

        Raises:
            RunFolderError: metrics.jsonl is damaged.
        """
        return figure_table(epoch_rows(RunFolder(self.path).metrics("epoch"), self.taps))

    def heads(self) -> pa.Table:
        """Return what the ledgers say of each tap and draw, one number a row.

        Columns: those of `epochs`. Figures: `rla`, `bits`, `bits_per_sample`, `margin_p05`, `margin_median`, `margin_p95`,
        of the samples that the epoch reached.

        Raises:
            LedgerError: a ledger is damaged.
        """
        paths = (path for phase in get_args(Phase) for path in list_ledgers(self.path, phase))
        return figure_table(row for path in paths for row in ledger_rows(read_ledger(path)))

    def samples(self, phase: Phase = "running", *, heads: bool = True) -> pa.Table:
        """Return one row for each sample: the training images for "running" and "clean", the held-out ones for "heldout".

        Args:
            phase: which ledgers are read.
            heads: read what they say of random labels too, which takes most of the time.

        Columns:
            `index`, `split`, `file`, `class` (number), `class_name`, `given_class`, `given_name` (other than the class where
            label noise or a canary replaced it), `canary` (its kind; null for most);
            `predicted`, `predicted_name`, `confidence` (the predicted class and its probability), `last_class_loss` (nats),
            `hit`: of the last ledger;
            `class_loss`, `class_confidence` (probability of the given class): means over the ledgers' epochs;
            from two ledgers on `class_variability`, `forgetting_events`, and `first_learned` (three hits in a row),
            `learned_for_good`, `first_hit`: epochs, null for never;
            for each tap `label_score/TAP`, `label_bits/TAP`, `label_margin/TAP`, means over epochs and the heads' own draws,
            and `audit_label_…/TAP` likewise over those of the audit heads.
            Null where no epoch reached the sample.

        Raises:
            RunError: there is no such phase.
            LedgerError: a ledger is damaged, or they are not of one run.
        """
        if phase not in get_args(Phase):
            match = nearest(str(phase), get_args(Phase)) or get_args(Phase)[0]
            raise RunError(f"phase is {phase!r}; allowed: {', '.join(get_args(Phase))}; nearest: {match}")
        return sample_table(self.path, phase, heads=heads)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps, in their order of depth; empty before the first ledger, and without heads."""
        return next(self._taps_of_ledgers(), ())

    def _taps_of_ledgers(self) -> Iterator[tuple[str, ...]]:
        for phase in get_args(Phase):
            for path in list_ledgers(self.path, phase)[-1:]:
                yield tuple(map(str, read_ledger_metadata(path).taps))


def run_config(folder: Path) -> Config:
    """Return the settings of a run.

    Raises:
        RunError: the folder has none.
        ConfigError: they cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{folder} has no config.yaml, the settings of the run")
    return parse_config(["--config", str(folder / "config.yaml")])


def open_run(path: str | Path) -> RunTables:
    """Open a run folder as tables; neither the images nor a checkpoint are needed.

    Args:
        path: the run folder; `~` and environment variables are expanded.

    Raises:
        RunError: there is no such folder, or a run left nothing in it.
    """
    folder = Path(expand_path("path", str(path)))
    if not any((folder / name).exists() for name in ("config.yaml", "metrics.jsonl", "ledger")):
        raise RunError(describe_missing_run(folder))
    return RunTables(folder)
