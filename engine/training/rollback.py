"""Rolling back: a run goes on from its last checkpoint, as a restart would, without the batches that were not finite."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.resume import find_resume_point
from rlpheads.engine.runs.sources import Sources
from rlpheads.engine.training.outcome import REMEDIES, RollBackError, TrainingDivergedError
from rlpheads.engine.training.start import Start
from rlpheads.engine.training.training import Training


class RollBacks:
    """How often a run rolled back, by the checkpoint that it went back to; bounded.

    Args:
        limit: roll-backs to one checkpoint.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._counts: Counter[str] = Counter()

    def next_start(
        self, start: Start, error: RollBackError, folder: RunFolder, sources: Sources, launch: Launch
    ) -> Start:
        """Return where the run goes on after `error`. Collective.

        Raises:
            TrainingDivergedError: it rolled back there often enough.
            CheckpointError: the checkpoint cannot be used.
        """
        config = replace(start.config, run=replace(start.config.run, resume="auto"))
        point = launch.share(find_resume_point(config, folder.checkpoints, sources) if launch.is_main else None)
        place = "the beginning" if point is None else point.checkpoint.name
        self._counts[place] += 1
        if self._counts[place] > self._limit:
            raise TrainingDivergedError(
                f"{error}; rolled back to {place} {self._limit} times already (stability.max_rollbacks). {REMEDIES} in a run "
                "with another --run.name",
                error.steps[-1],
            )
        before = start.left_out if point is None else point.position.left_out
        left_out = tuple(sorted({*before, *start.left_out, *error.steps}))
        said = f"rolled back to {place}: {error}; left out from here on: {_steps(error.steps)}"
        return start._replace(point=point, left_out=left_out, warnings=(*start.warnings, said))


def record_rollback(training: Training, start: Start) -> None:
    """Record in metrics.jsonl what is left out since the run rolled back, if it did; at the main rank alone.

    The event has the number of the last step that is left out: a resume from before drops it, and meets it again.
    """
    if start.left_out:
        place = {"kind": "event", "step": start.left_out[-1], "epoch": training.position.epoch}
        event = {"event": "rolled back", "to_step": training.num_updates, "left_out": list(start.left_out)}
        training.run.log.record_event(place | event)


def _steps(steps: tuple[int, ...]) -> str:
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"
