"""The cores that this process may use, by its affinity and its control group, and the threads of each rank."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return the number of cores, at least 1: those of the affinity mask, and no more than the control group's quota.

    A container with `--cpus 4` on a machine of 64 cores sees all 64 in its mask, and is stopped when it has used four.
    """
    return max(1, min(_affinity(), math.floor(quota)) if (quota := cpu_quota()) is not None else _affinity())


def num_threads(num_ranks: int) -> int | None:
    """Return how many threads each of this node's ranks computes with; None: torch's own choice is right."""
    if num_ranks == 1 and usable_cores() >= _affinity():
        return None
    return max(1, usable_cores() // num_ranks)


def thread_advice(threads: int, num_ranks: int, *, is_set: bool) -> str | None:
    """Return what to say of the threads that each of this node's ranks computes with; None where they suit the cores.

    Args:
        threads: of each rank.
        num_ranks: on this node.
        is_set: whether OMP_NUM_THREADS is; without it torch takes one a physical core, which is right for one rank.
    """
    cores = usable_cores()
    share = max(1, cores // num_ranks)
    on = f"of {cores} cores that this job may use, for {num_ranks} rank(s) here"
    if is_set and threads < share:
        return (
            f"threads: each rank computes with {threads} {on} (OMP_NUM_THREADS; torchrun sets 1); its share is {share}"
        )
    if threads > share and threads * num_ranks > cores:
        return (
            f"threads: each rank computes with {threads} {on}, which then wait for each other; OMP_NUM_THREADS={share}"
        )
    return None


def cpu_quota(root: Path = _CGROUP) -> float | None:
    """Return how many cores' time the control group allows, or None where it sets no limit.

    Version 2 has cpu.max, "QUOTA PERIOD" in microseconds or "max PERIOD"; version 1 has one file for each, and -1 for no limit
    (https://docs.kernel.org/admin-guide/cgroup-v2.html).
    """
    try:
        if (limit := root / "cpu.max").exists():
            quota, period = limit.read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file system, or none that is understood
        return None


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
