"""Ranks launched through torch's elastic API, which torchrun uses too: what a rank says is all that is said.

Stop signals that reach the launcher are passed on to the ranks, which save and end by themselves.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from types import FrameType
from typing import Any

import psutil
import torch
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.launcher_options import LauncherOptions
from rlpheads.engine.distributed.launcher_folder import announce_stop, open_launcher_folder, read_code, was_hang
from rlpheads.loaders.contract.stop_signals import STOP_SIGNALS, ignored_stop_signals

_LOOK_EVERY_S = 10
_SAY_EVERY_S = 30
_BY_SIGNAL = 128
"""A process that a signal ended has this exit code and the signal's number, as shells have it."""
_LEFT_S = 10
"""Seconds that ranks have after another one failed: they wait for it, and have nothing to save."""
_SHUTDOWN: dict[str, Any] = (
    {"shutdown_timeout": _LEFT_S} if "shutdown_timeout" in {each.name for each in fields(LaunchConfig)} else {}
)
"""Empty for torch 2.11, whose ranks are left 30 seconds."""
_NO_SHARED_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""torch 2.14's launchers otherwise keep one store through all restarts and tell its address in the first round alone: one that
joins later, in the place of another, waits for it in vain (dynamic_rendezvous.py: `_bootstrap_store_info`)."""
_PASSED_ON_ELSEWHERE = "none"
"""No name of a signal: torch's handlers would end the ranks after a time, and lose their exit codes."""


def num_local_ranks(options: LauncherOptions) -> int:
    """Return the number of ranks on this node.

    Raises:
        ConfigError: one for each GPU is asked for, and there is no GPU.
    """
    if options.num_ranks is not None:
        return options.num_ranks
    if not torch.cuda.is_available():
        raise ConfigError("--nproc-per-node: got gpu, and there is none that PyTorch can use; allowed here: a number")
    return torch.cuda.device_count()


def launch_ranks(options: LauncherOptions, script: str, arguments: Sequence[str]) -> int:
    """Run `script` with `arguments` in every rank of this node, to their end; return their exit code.

    Raises:
        ConfigError: the nodes cannot meet.
    """
    logging.disable(logging.CRITICAL)  # what goes wrong is said by the ranks, or below
    with tempfile.TemporaryDirectory(prefix="rlpheads-train-") as folder, _signals_passed_on(), _waits_named(options):
        open_launcher_folder(folder)
        if not options.one_node:
            os.environ.update(_NO_SHARED_STORE)
        try:
            elastic_launch(_launch_config(options, folder), sys.executable)("-u", script, *arguments)
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            if was_hang():  # of those that have no code of their own, the launcher had to kill some
                codes = {rank: code for rank, code in codes.items() if code > 0}
            return read_code() or _exit_code(codes)
        except (RendezvousError, DistError, OSError, ValueError) as error:
            (first, *_) = str(error).splitlines() or [type(error).__name__]
            raise ConfigError(f"the nodes cannot meet at {options.endpoint} ({options.backend}): {first}") from error
        return read_code() or 0


@contextmanager
def _waits_named(options: LauncherOptions) -> Iterator[None]:
    """Say now and then that this node waits for others: it has no ranks that could."""
    over = threading.Event()
    if not options.one_node:
        threading.Thread(target=_name_waits, args=(options, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _name_waits(options: LauncherOptions, over: threading.Event) -> None:
    waited_s = 0
    while not over.wait(_LOOK_EVERY_S):
        waited_s = 0 if psutil.Process().children() else waited_s + _LOOK_EVERY_S
        if waited_s and waited_s % _SAY_EVERY_S == 0:
            limit_s = options.settings.get("join_timeout", "600")
            print(
                f"waiting for {options.num_nodes} nodes at {options.endpoint} since {waited_s} s, at most {limit_s} s "
                "(--rdzv-conf join_timeout=SECONDS): start this command on each",
                file=sys.stderr,
            )


def _launch_config(options: LauncherOptions, folder: str) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=options.num_nodes,
        max_nodes=options.num_nodes,
        nproc_per_node=num_local_ranks(options),
        run_id=options.job or str(uuid.uuid4()),
        rdzv_backend=options.backend,
        rdzv_endpoint=options.endpoint,
        rdzv_configs={**({"rank": options.node_rank} if options.backend == "static" else {}), **options.settings},
        local_addr=options.address,
        max_restarts=options.restarts,
        **_SHUTDOWN,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        signals_to_handle=_PASSED_ON_ELSEWHERE,
    )


def _exit_code(codes: Mapping[int, int]) -> int:
    """Return the exit code of ranks that ended with `codes`, not 0: that of the one that a signal took away, or the first's.

    The others' are mostly the consequence: torch sends SIGTERM to those that are left.
    """
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    for rank, number in killed.items():
        usual = "; the usual cause is memory (see dmesg)" if number == signal.SIGKILL else ""
        print(f"error: rank {rank} was ended by {signal.Signals(number).name}{usual}", file=sys.stderr)
        return _BY_SIGNAL + number
    code = next((code for code in codes.values() if code > 0), -int(signal.SIGTERM))
    return code if code > 0 else _BY_SIGNAL - code


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """Pass each stop signal on to the ranks, once; where there are none yet, it ends this process as ever."""
    passed_on = [number for number in STOP_SIGNALS if number not in ignored_stop_signals()]
    before = {number: signal.signal(number, _pass_on) for number in passed_on}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(number: int, _frame: FrameType | None) -> None:
    ranks = psutil.Process().children()
    if not ranks:
        raise SystemExit(_BY_SIGNAL + number)
    announce_stop()
    for rank in ranks:  # each leads a session of its own, so that no terminal sends it the signal as well
        os.kill(rank.pid, number)
