"""A run's figures in TensorBoard's files, with charts of all taps, hyperparameters and drawings."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlpheads.engine.trackers.tracker import charts


class TensorBoardFiles:
    """TensorBoard's record.

    Args:
        folder: where its files are.
        purge_from: what an earlier process recorded from this step on is dropped.
        settings: hyperparameters by dotted name.
        taps: names of the taps.
    """

    def __init__(
        self, folder: Path, purge_from: int, settings: Mapping[str, bool | int | float | str], taps: Sequence[int | str]
    ):
        self._folder, self._purge_from, self._settings, self._taps = folder, purge_from, dict(settings), tuple(taps)

    @functools.cached_property
    def _writer(self) -> Any:
        """Begun with the first figures: it takes longer to load than a step takes, at the main rank alone."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        _silence_writers()
        writer = SummaryWriter(self._folder, purge_step=self._purge_from)
        sections = charts(self._taps)
        tags = {
            section: {title: ["Multiline", [f"{re.escape(name)}$" for name in names]] for title, names in each.items()}
            for section, each in sections.items()
        }
        writer.add_custom_scalars(tags)
        # SummaryWriter.add_hparams would put them into a folder of their own, as another run
        shown = dict.fromkeys(name for names in sections["first"].values() for name in names)
        experiment, start, self._end = hparams(self._settings, shown)
        for summary in (experiment, start):
            writer._get_file_writer().add_summary(summary)
        return writer

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker.write`."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed run shows here what its metrics.jsonl shows

    def show(self, step: int, drawings: Mapping[str, Path], epochs: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker.show`; the charts are there from the beginning."""
        del epochs
        import numpy as np
        from PIL import Image

        for name, path in drawings.items():
            with Image.open(path) as image:
                self._writer.add_image(f"figures/{name}", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """See `Tracker.close`."""
        if "_writer" in vars(self):
            self._writer._get_file_writer().add_summary(self._end)
            self._writer.close()


@functools.cache
def _silence_writers() -> None:
    """Let TensorBoard's writing threads die without a traceback: the run meets their error itself, at its next row."""
    others = threading.excepthook

    def hook(died: threading.ExceptHookArgs) -> None:
        if type(died.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            others(died)

    threading.excepthook = hook
