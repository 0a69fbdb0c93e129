"""A run's figures in trackio, which keeps them on this machine; `trackio show` opens them in a browser."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from rlpheads.engine.config.run import LogConfig
from rlpheads.engine.trackers.tracker import RunLogError, first_curves


class TrackioRun:
    """A trackio run of the run folder's name, which every resume of ours goes on with; it takes nothing back, as W&B.

    Args:
        folder: the run folder.
        log: the project's name.
        settings: hyperparameters by dotted name.
        taps: names of the taps.

    Raises:
        RunLogError: trackio refuses to begin.
    """

    def __init__(self, folder: Path, log: LogConfig, settings: Mapping[str, Any], taps: Sequence[int | str]):
        import trackio

        self._first = first_curves(taps)
        options = {"resume": "allow", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        try:
            with redirect_stdout(io.StringIO()):  # the terminal is the run's own
                self._run = trackio.init(log.wandb_project, name=folder.name, config=dict(settings), **options)
        except (ValueError, RuntimeError, OSError) as error:
            words = f"log.trackio: trackio cannot begin ({error}); leave it out with --log.trackio false"
            raise RunLogError(words) from error

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker.write`."""
        first = {words: figures[name] for words, name in self._first.items() if name in figures}
        self._run.log({**first, **figures}, step=step)

    def show(self, step: int, drawings: Mapping[str, Path], epochs: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker.show`; it draws the curves of a project's figures itself."""
        del epochs
        import trackio

        self._run.log({f"figures/{name}": trackio.Image(str(path)) for name, path in drawings.items()}, step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        with redirect_stdout(io.StringIO()):
            self._run.finish()
