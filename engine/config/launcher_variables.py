"""Environment variables of launchers (torchrun, Slurm): rank, world size, restarts. A wrong one is named in the error."""

from __future__ import annotations

import os

from rlpheads.engine.config.errors import ConfigError, RankError, refusal

RESTART_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Variables in which launchers count how often they started this job again; empty is as good as absent."""

_LAUNCHER = "torchrun sets these environment variables; without it, set all or none of them"
_LAST_PORT = 65535
_LONGEST = 18  # digits of a number: Python refuses to read thousands of them


def rank_numbers() -> tuple[int, int, int]:
    """Return RANK, WORLD_SIZE and LOCAL_RANK; 0, 1 and 0 where they are not set.

    Raises:
        ConfigError: these or other variables of launchers are not numbers, contradict each other, or lack the address at
            which the ranks meet (MASTER_ADDR, MASTER_PORT).
    """
    world_size = _number("WORLD_SIZE", 1, least=1)
    rank = _below("RANK", _number("RANK", 0), "WORLD_SIZE", world_size)
    if "LOCAL_WORLD_SIZE" in os.environ:
        _below("LOCAL_RANK", local_rank(), "LOCAL_WORLD_SIZE", local_world_size())
    is_restarted()
    if "RANK" in os.environ or world_size > 1:
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise ConfigError(f"{name}: not set, though RANK or WORLD_SIZE is; {_LAUNCHER}")
        _number("MASTER_PORT", 0, least=int(world_size > 1), most=_LAST_PORT)
    return rank, world_size, local_rank()


def local_rank() -> int:
    """Return this process's number among those of its node."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Return the number of ranks on this node."""
    return _number("LOCAL_WORLD_SIZE", 1, least=1)


def is_restarted() -> bool:
    """Whether a launcher started this process again (torchrun after a failure, Slurm after a requeue)."""
    return any(_number(name, 0, remedy="unset it") > 0 for name in RESTART_COUNTS if os.environ.get(name))


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
