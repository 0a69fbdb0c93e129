"""A run's figures in Weights & Biases."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlpheads.engine.config.run import LogConfig
from rlpheads.engine.trackers.tracker import ALL_TAPS, RunLogError, first_curves
from rlpheads.memorization.atomic_file import atomic_file


class WandbRun:
    """A W&B run that every resume of ours goes on with.

    W&B cannot take back what it was told and passes over steps that it has: trained again, they are the same numbers. Figures
    without a slash stand in its first section, so the curves that matter first are there under names in words, too.

    Args:
        folder: the run folder.
        log: mode and project.
        settings: the run's configuration.
        taps: names of the taps.

    Raises:
        RunLogError: W&B refuses to begin.
    """

    def __init__(self, folder: Path, log: LogConfig, settings: Mapping[str, Any], taps: Sequence[int | str]):
        import wandb

        self._taps, self._first = tuple(taps), first_curves(taps)
        identity = folder / "wandb" / "run_id.txt"
        if not identity.exists():
            with atomic_file(identity) as temporary:
                temporary.write_text(uuid.uuid4().hex[:12] + "\n")
        try:
            self._run = wandb.init(
                mode=log.wandb if log.wandb == "online" else "offline",
                project=log.wandb_project,
                name=folder.name,
                id=identity.read_text().strip(),
                resume="allow",
                dir=folder,
                config=dict(settings),
                settings=wandb.Settings(console="off", silent=True),  # the terminal is the run's own
            )
        except wandb.errors.Error as error:
            raise RunLogError(
                f"log.wandb: got {log.wandb}, but W&B cannot begin ({error}); log in with `wandb login`, or give "
                "--log.wandb offline, whose files `wandb sync` sends later"
            ) from error

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker.write`."""
        first = {words: figures[name] for words, name in self._first.items() if name in figures}
        self._run.log({**first, **figures}, step=step)

    def show(self, step: int, drawings: Mapping[str, Path], epochs: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker.show`."""
        import wandb

        shown: dict[str, Any] = {f"figures/{name}": wandb.Image(str(path)) for name, path in drawings.items()}
        for name, words in ALL_TAPS.items() if self._taps else ():
            rows = [row for row in epochs if row.get(name)]
            if rows:
                by_tap = [list(values) for values in zip(*(row[name] for row in rows), strict=True)]
                keys, numbers = [f"tap {tap}" for tap in self._taps], [row["epoch"] for row in rows]
                shown[f"all taps/{words}"] = wandb.plot.line_series(numbers, by_tap, keys, words, "epoch")
        self._run.log(shown, step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._run.finish()
