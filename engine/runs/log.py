"""The log of a run: rows of metrics.jsonl, and the same figures in TensorBoard, W&B and trackio.

There is one way in, `RunLog.append`, so that no two records of a run can differ. A resumed run takes back, in all of
them, what lies behind its checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlpheads.engine.config.run import LogConfig
from rlpheads.engine.config.values import flat_settings
from rlpheads.engine.runs.folder import RunFolder, finite_or_none
from rlpheads.engine.runs.record_digests import METRICS, FileDigest, RecordDigests
from rlpheads.engine.trackers.tensorboard_files import TensorBoardFiles
from rlpheads.engine.trackers.tracker import Tracker
from rlpheads.engine.trackers.trackio_run import TrackioRun
from rlpheads.engine.trackers.wandb_run import WandbRun
from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import LedgerMetadata

_POSITION_KEYS = ("kind", "step", "epoch")
"""Keys of a row that say where its figures belong."""


class RunLog:
    """The records of one run. Before `open`, and at every rank but the first, there is metrics.jsonl alone.

    Args:
        folder: the run's folder.
        settings: which records there are besides.
        taps: names of the taps, by which figures of several taps are told apart.
    """

    def __init__(self, folder: RunFolder, settings: LogConfig, taps: Sequence[int | str]):
        self._folder = folder
        self._settings = settings
        self._taps = tuple(taps)
        self._trackers: list[Tracker] = []
        self._digests = RecordDigests(folder.path)

    def open(
        self, step: int, epoch: int, settings: Mapping[str, Any], known: Mapping[str, FileDigest] | None = None
    ) -> None:
        """Begin, or go on, after `step` steps and `epoch` finished epochs; what was recorded behind them is dropped.

        Args:
            step: optimizer steps taken.
            epoch: epochs finished.
            settings: the run's configuration, which the records beside metrics.jsonl show.
            known: digests of the record's files that are as the checkpoint knew them.

        Raises:
            RunLogError: W&B or trackio refuses to begin.
        """
        known = known or {}
        kept = self._folder.rewind_metrics(step, epoch, known[METRICS].bytes if METRICS in known else None)
        self._digests = RecordDigests(self._folder.path, known)
        plain = {name: _plain(value) for name, value in flat_settings(settings).items()}
        if self._settings.tensorboard:
            again = kept  # a run that had no such record yet gets it whole
            if self._folder.tensorboard.exists():
                again = [row for row in kept if row["step"] == step]  # purged with a dropped epoch's line of that step
            self._trackers.append(TensorBoardFiles(self._folder.tensorboard, step, plain, self._taps))
            for row in again:
                self._record(row)
        if self._settings.wandb != "off":
            self._trackers.append(WandbRun(self._folder.path, self._settings, settings, self._taps))
        if self._settings.trackio:
            self._trackers.append(TrackioRun(self._folder.path, self._settings, plain, self._taps))

    def append(self, row: Mapping[str, Any]) -> None:
        """Record one row (`kind`, `step`, `epoch`, and figures by name) everywhere."""
        row = finite_or_none(row)
        self._folder.append_metrics(row)
        self._record(row)

    def record_event(self, row: Mapping[str, Any]) -> None:
        """Record in metrics.jsonl what happened at a step: no figure, so nothing for the other records."""
        self._folder.append_metrics(row)

    def write_ledger(self, ledger: Ledger, metadata: LedgerMetadata) -> None:
        """Write the ledger of an epoch and phase into the run folder."""
        path = self._folder.ledger(metadata.epoch, metadata.phase)
        ledger.write_parquet(path, metadata)
        self._digests.add_ledger(path)

    def show(self, step: int, drawings: Sequence[Path]) -> None:
        """Show drawings, of which PNG files are taken, in all records that can."""
        if self._trackers:
            named = {path.stem: path for path in drawings if path.suffix == ".png"}
            epochs = self._folder.metrics("epoch")
            for tracker in self._trackers:
                tracker.show(step, named, epochs)

    def digests(self) -> dict[str, dict[str, Any]]:
        """Return the digests of all that is recorded, for a checkpoint's manifest."""
        return self._digests.current()

    def close(self) -> None:
        """Finish all records."""
        while self._trackers:
            self._trackers.pop().close()

    def _record(self, row: Mapping[str, Any]) -> None:
        figures = dict(named_figures(row, self._taps))
        for tracker in self._trackers:
            tracker.write(row["step"], figures)


def named_figures(row: Mapping[str, Any], taps: Sequence[int | str]) -> Iterator[tuple[str, float]]:
    """Yield the figures of a row, one number a name: step/class_loss, or epoch/rla_clean/3 for that of tap 3."""
    for name, value in row.items():
        if name in _POSITION_KEYS or value is None:
            continue
        if isinstance(value, list):
            named = ((f"{row['kind']}/{name}/{tap}", item) for tap, item in zip(taps, value, strict=True))
            yield from ((place, item) for place, item in named if item is not None)
        else:
            yield f"{row['kind']}/{name}", value


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
