"""Environment variables of launchers (torchrun, Slurm): rank, world size, restarts. A wrong one is named in the error."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rlpheads.engine.config.errors import ConfigError, RankError, refusal

RESTART_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Variables in which launchers count how often they started this job again; empty is as good as absent."""

_TASK_COUNTS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun",
}
"""Variables in which launchers without a rendezvous of torch's count the copies of a program, and the launchers."""

_UNNAMED = ("none", "rlpheads")  # the rendezvous ids of torchrun and of `rlpheads train` where none is given
_LAUNCHER = "torchrun sets these environment variables; without it, set all or none of them"
_LAST_PORT = 65535
_START_TIME = 19  # place of a process's start in /proc/PID/stat, behind its name in brackets: proc(5)
_LONGEST = 18  # digits of a number: Python refuses to read thousands of them


def rank_numbers() -> tuple[int, int, int]:
    """Return RANK, WORLD_SIZE and LOCAL_RANK; 0, 1 and 0 where they are not set.

    Raises:
        ConfigError: these or other variables of launchers are not numbers, contradict each other, or lack the address at
            which the ranks meet (MASTER_ADDR, MASTER_PORT).
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        check_one_process()
    world_size = _number("WORLD_SIZE", 1, least=1)
    rank = _below("RANK", _number("RANK", 0), "WORLD_SIZE", world_size)
    if "LOCAL_WORLD_SIZE" in os.environ:
        _below("LOCAL_RANK", local_rank(), "LOCAL_WORLD_SIZE", local_world_size())
    for name in RESTART_COUNTS:
        restart_count(name)
    if "RANK" in os.environ or world_size > 1:
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise ConfigError(f"{name}: not set, though RANK or WORLD_SIZE is; {_LAUNCHER}")
        _number("MASTER_PORT", 0, least=int(world_size > 1), most=_LAST_PORT)
    return rank, world_size, local_rank()


def check_one_process() -> None:
    """Refuse to be one of several copies that srun or mpirun started: each would train alone, into the same folder.

    Raises:
        RankError: with the command that launches the ranks.
    """
    for name, launcher in _TASK_COUNTS.items():
        if (count := os.environ.get(name, "1")) != "1" and _is_number(count):
            raise _several_copies(name, count, launcher)
    # Slurm's first process of a job, which is the batch script, has number 0 and counts the tasks that srun may start.
    if os.environ.get("SLURM_PROCID", "0") != "0":
        raise _several_copies("SLURM_PROCID", os.environ["SLURM_PROCID"], "srun")


def _several_copies(name: str, given: str, launcher: str) -> RankError:
    one_task = "srun --ntasks 1" if launcher == "srun" else "mpirun -n 1"
    return RankError(
        f"{name}: got {given}: {launcher} started several copies, and each would train alone; let `rlpheads train` start the "
        f"ranks: {one_task} rlpheads train --nproc-per-node N --config FILE (on several nodes one copy a node, with --nnodes "
        "and --rdzv-endpoint)"
    )


def without_local_rank(argv: Sequence[str]) -> list[str]:
    """Return a command line without the `--local-rank=N` of `python -m torch.distributed.launch`, which sets LOCAL_RANK too."""
    if "LOCAL_RANK" not in os.environ:
        return list(argv)
    return [word for word in argv if word.partition("=")[0] not in ("--local-rank", "--local_rank")]


def local_rank() -> int:
    """Return this process's number among those of its node."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Return the number of ranks on this node."""
    return _number("LOCAL_WORLD_SIZE", 1, least=1)


def restart_count(name: str) -> int:
    """Return how often a launcher started this job again, from one of `RESTART_COUNTS`."""
    return _number(name, 0, remedy="unset it") if os.environ.get(name) else 0


def slurm_job() -> str | None:
    """Return Slurm's number of this job, which a requeue keeps; None outside Slurm."""
    return os.environ.get("SLURM_JOB_ID") or None


def torchrun_job() -> str | None:
    """Name the torchrun that started this process, alike in each of its restarts; None without torchrun.

    That is its rendezvous id. Where none was given the id is the same for everybody: then its own process is named, by
    host, number and start time.
    """
    given = os.environ.get("TORCHELASTIC_RUN_ID")
    if given not in _UNNAMED:
        return given or None
    agent = os.getppid()
    with suppress(OSError):  # no /proc: the number must do
        started = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[_START_TIME]
        return f"{socket.gethostname()} {agent} {started}"
    return f"{socket.gethostname()} {agent}"


def is_first(name: str) -> bool:
    """Whether this process has number 0 in RANK or LOCAL_RANK.

    One whose number cannot be read counts as first, so that some process prints the error.
    """
    given = os.environ.get(name, "0")
    return not _is_number(given) or int(given) == 0


def _below(name: str, number: int, bound: str, size: int) -> int:
    if number >= size:
        raise RankError(str(refusal(name, number, f"a number below {bound}, {size}; {_LAUNCHER}")))
    return number


def _number(name: str, default: int, *, least: int = 0, most: int | None = None, remedy: str = _LAUNCHER) -> int:
    given = os.environ.get(name, str(default))
    if not _is_number(given) or int(given) < least or (most is not None and int(given) > most):
        up_to = "" if most is None else f" to {most}"
        raise refusal(name, given, f"a number from {least}{up_to}; {remedy}")
    return int(given)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _LONGEST
