"""Surroundings in which the loader's worker processes cannot work: found before anything starts, where they would wait."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.launcher_variables import local_world_size
from rlpheads.engine.config.schema import Config
from rlpheads.loaders.adapters.worker_surroundings import why_no_shared_memory, why_no_sockets
from rlpheads.loaders.contract.options import LoaderOptions

_REMEDY = "or take fewer --data.workers, a smaller --batch_size, or no worker processes at all: --data.workers 0"


def worker_errors(config: Config, world_size: int) -> Iterator[ConfigError]:
    """Yield what keeps the worker processes of `data.loader: torch` from handing over their batches."""
    if config.data.loader != "torch" or config.data.workers == 0:
        return
    if (reason := why_no_sockets()) is not None:
        yield ConfigError(f"{reason}, or --data.workers 0")
    options = LoaderOptions(
        num_workers=min(config.data.workers, len(os.sched_getaffinity(0)))
    )  # as loading.py starts them
    num_rows = -(-max(config.batch_size, config.eval.batch_size or 0) // world_size)
    largest = max(config.data.image_size, config.evaluation_size)
    reason = why_no_shared_memory(num_rows, largest, options, local_world_size())
    if reason is not None:
        yield ConfigError(f"{reason}, {_REMEDY}")
