"""Runs whose ranks are forks of a process that has imported everything, so that a start costs a second and not ten.

Every rank is a process of its own, and every signal a real one; only the launcher is missing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

from started_run import StartedRun
from typing_extensions import override

IMPORTED = (
    *("rlpheads.engine.train", "rlpheads.engine.training.job", "torch._dynamo", "torch.distributed.checkpoint"),
    *(
        "scipy.stats",
        "scipy.optimize",
        "matplotlib.pyplot",
        "tensorboard",
        "torch.utils.tensorboard",
        "pyarrow.parquet",
    ),
)
"""What the process that is forked has imported."""
_LEFT_S = 30.0
"""Seconds between SIGTERM and SIGKILL to ranks that are left when one failed, as torchrun has it."""


class ForkedRun(StartedRun):
    """Ranks forked off a process that has imported everything; where one fails the others are ended, as torchrun does.

    Args:
        arguments: of engine/train.py.
        num_ranks: forked.
        log: gets what they print.
        prepare: called in each rank before it begins, with its number.
        environment: the whole of it, but for a launcher's variables; the one that `import_once` saw by default.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        num_ranks: int,
        log: Path,
        prepare: Callable[[int], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ):
        context, port = _forking(), free_port()
        self._failed_since: float | None = None
        self._ranks = []
        for rank in range(num_ranks):
            variables = rank_variables(rank, num_ranks, port)
            started = context.Process(
                target=_forked_rank,
                args=(arguments, environment, variables, log, prepare, multiprocessing.get_start_method()),
            )
            started.start()
            self._ranks.append(started)

    @override
    def ranks(self) -> dict[int, int]:
        return {number: rank.pid for number, rank in enumerate(self._ranks) if rank.is_alive() and rank.pid}

    @override
    def has_ended(self) -> bool:
        if not (living := [rank for rank in self._ranks if rank.is_alive()]):
            return True
        if any(rank.exitcode for rank in self._ranks):
            now = time.monotonic()
            if self._failed_since is None:
                self._failed_since = now
                for rank in living:
                    rank.terminate()
            elif now - self._failed_since > _LEFT_S:
                self.kill()
        return False

    @property
    @override
    def code(self) -> int | None:
        codes = [rank.exitcode for rank in self._ranks]
        return next((code for code in codes if code), None if None in codes else 0)

    @override
    def kill(self) -> None:
        for rank in self._ranks:
            rank.kill()


def _forking() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def import_once() -> None:
    """Start the process that ranks are forked off, and wait until it has imported everything.

    Under nohup SIGHUP is ignored, by all that is started, too: runs respect that, and would not meet it. Ranks compute with one
    thread each, as under torchrun: sums of more threads have other last bits.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ["OMP_NUM_THREADS"] = "1"
    first = _forking().Process(target=time.sleep, args=(0,))
    first.start()
    first.join()


def _forked_rank(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None,
    variables: Mapping[str, str],
    log: Path,
    prepare: Callable[[int], None] | None,
    start_method: str,
) -> None:
    from rlpheads.engine import train

    multiprocessing.set_start_method(start_method, force=True)  # a rank's own children are not forked off the server
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    os.environ.update(variables)
    with log.open("a") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    sys.argv = ["engine/train.py", *arguments]
    if prepare is not None:
        prepare(int(variables.get("RANK", 0)))
    sys.exit(train.main())


def rank_variables(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """Return what torchrun would tell a rank; nothing where there is one alone."""
    if num_ranks == 1:
        return {}
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks), **place}


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])
