"""What a training is given."""

from __future__ import annotations

from dataclasses import dataclass

from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.log import RunLog
from rlpheads.engine.runs.sources import Sources


@dataclass(frozen=True)
class RunSetup:
    """What a run is given: settings, ranks, folder, log, images."""

    config: Config
    launch: Launch
    folder: RunFolder
    log: RunLog
    sources: Sources
