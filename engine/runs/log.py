"""The log of a run: rows of metrics.jsonl, and the same figures in TensorBoard and W&B.

There is one way in, `RunLog.append`, so that no two records of a run can differ. A resumed run takes back, in all of
them, what lies behind its checkpoint.
"""

from __future__ import annotations

import functools
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlpheads.engine.config.run import LogConfig
from rlpheads.engine.runs.folder import RunFolder, finite_or_none, write_atomically
from rlpheads.engine.runs.record_digests import METRICS, FileDigest, RecordDigests
from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import LedgerMetadata

_POSITION_KEYS = ("kind", "step", "epoch")
"""Keys of a row that say where its figures belong."""


class RunLogError(RuntimeError):
    """A record that was asked for cannot be kept; the message says what to do."""


class LogSink(Protocol):
    """A record beside metrics.jsonl."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Record the figures of one row."""

    def close(self) -> None:
        """Finish the record."""


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
        self._sinks: list[LogSink] = []
        self._digests = RecordDigests(folder.path)

    def open(
        self, step: int, epoch: int, settings: Mapping[str, Any], known: Mapping[str, FileDigest] | None = None
    ) -> None:
        """Begin, or go on, after `step` steps and `epoch` finished epochs; what was recorded behind them is dropped.

        Args:
            step: optimizer steps taken.
            epoch: epochs finished.
            settings: the run's configuration, which W&B shows beside its figures.
            known: digests of the record's files that are as the checkpoint knew them.

        Raises:
            RunLogError: W&B refuses to begin.
        """
        known = known or {}
        kept = self._folder.rewind_metrics(step, epoch, known[METRICS].bytes if METRICS in known else None)
        self._digests = RecordDigests(self._folder.path, known)
        if self._settings.tensorboard:
            again = kept  # a run that had no such record yet gets it whole
            if self._folder.tensorboard.exists():
                again = [row for row in kept if row["step"] == step]  # purged with a dropped epoch's line of that step
            self._sinks.append(_TensorBoard(self._folder.tensorboard, purge_from=step))
            for row in again:
                self._record(row)
        if self._settings.wandb != "off":
            self._sinks.append(_Wandb(self._folder.path, self._settings, settings))

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

    def digests(self) -> dict[str, dict[str, Any]]:
        """Return the digests of all that is recorded, for a checkpoint's manifest."""
        return self._digests.current()

    def close(self) -> None:
        """Finish all records."""
        while self._sinks:
            self._sinks.pop().close()

    def _record(self, row: Mapping[str, Any]) -> None:
        figures = dict(named_figures(row, self._taps))
        for sink in self._sinks:
            sink.write(row["step"], figures)


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


class _TensorBoard:
    def __init__(self, folder: Path, purge_from: int):
        from torch.utils.tensorboard import SummaryWriter  # takes a second, at the main rank alone

        _silence_writers()
        self._writer = SummaryWriter(folder, purge_step=purge_from)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed run shows here what its metrics.jsonl shows

    def close(self) -> None:
        self._writer.close()


@functools.cache
def _silence_writers() -> None:
    """Let TensorBoard's writing threads die without a traceback: the run meets their error itself, at its next row."""
    others = threading.excepthook

    def hook(died: threading.ExceptHookArgs) -> None:
        if type(died.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            others(died)

    threading.excepthook = hook


class _Wandb:
    """A W&B run that every resume of ours goes on with.

    W&B cannot take back what it was told and passes over steps that it has: trained again, they are the same numbers.
    """

    def __init__(self, folder: Path, settings: LogConfig, shown: Mapping[str, Any]):
        import wandb

        identity = folder / "wandb" / "run_id.txt"
        if not identity.exists():
            write_atomically(identity, uuid.uuid4().hex[:12] + "\n")
        try:
            self._run = wandb.init(
                mode=settings.wandb if settings.wandb == "online" else "offline",
                project=settings.wandb_project,
                name=folder.name,
                id=identity.read_text().strip(),
                resume="allow",
                dir=folder,
                config=dict(shown),
                settings=wandb.Settings(console="off", silent=True),  # the terminal is the run's own
            )
        except wandb.errors.Error as error:
            raise RunLogError(
                f"log.wandb: got {settings.wandb}, but W&B cannot begin ({error}); log in with `wandb login`, or give "
                "--log.wandb offline, whose files `wandb sync` sends later"
            ) from error

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()
