"""The five events of the loop, announced to the callbacks of a run's plug-ins."""

from __future__ import annotations

from typing import Any

from rlpheads.engine.plugins.callback import LoopState
from rlpheads.engine.plugins.loading import load_plugins
from rlpheads.engine.training.training import Training


def announce(training: Training, event: str, *facts: Any, epoch: int | None = None) -> None:
    """Tell every callback of an event, at this rank.

    Args:
        training: the run where it stands.
        event: one of `rlpheads.engine.plugins.callback.EVENTS`.
        facts: what the event is told besides.
        epoch: the epoch that the event is of; None: that of the position.
    """
    callbacks = load_plugins(training.run.config.plugins).callbacks
    if not callbacks:
        return
    run = training.run
    state = LoopState(
        config=run.config,
        folder=run.folder.path,
        is_main=run.launch.is_main,
        epoch=training.position.epoch if epoch is None else epoch,
        step=training.num_updates,
        model=training.learner.tapped,
    )
    for callback in callbacks:
        getattr(callback, event)(state, *facts)
