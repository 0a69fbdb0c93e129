"""The five events of the loop, announced to the callbacks of a run's plug-ins."""

from __future__ import annotations

from typing import Any

from rlpheads.engine.config.schema import Config
from rlpheads.engine.plugins.callback import LoopState
from rlpheads.engine.plugins.loading import load_plugins


def announce(config: Config, event: str, *facts: Any, **state: Any) -> None:
    """Tell every callback of the plug-ins that the settings name of an event, at this rank.

    Args:
        config: settings of the run.
        event: one of `rlpheads.engine.plugins.callback.EVENTS`.
        facts: what the event is told besides.
        state: the other attributes of `LoopState`.
    """
    for callback in load_plugins(config.plugins).callbacks:
        getattr(callback, event)(LoopState(config, **state), *facts)
