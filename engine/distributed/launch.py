"""Processes and devices: who this process is among the ranks, and the groups they talk through."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rlpheads.engine.config import launcher_variables
from rlpheads.engine.config.errors import ConfigError, RankError
from rlpheads.engine.config.run import DistributedConfig
from rlpheads.engine.distributed.meeting import MeetingError, open_meeting
from rlpheads.engine.distributed.meeting_places import MeetingPlaces, may_differ, noted_place
from rlpheads.engine.distributed.progress import Progress

T = TypeVar("T")

_RECORDED = "2000"
"""Collectives that torch's flight recorder keeps; a hang writes them."""


@dataclass(frozen=True)
class Rank:
    """This process's place as torchrun's environment tells it; one rank of one without torchrun."""

    rank: int
    world_size: int
    local_rank: int

    @classmethod
    def from_environment(cls) -> Rank:
        """Read RANK, WORLD_SIZE and LOCAL_RANK.

        Raises:
            ConfigError: they are no numbers, contradict each other, or say nothing of where the ranks meet.
        """
        return cls(*launcher_variables.rank_numbers())

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0


@dataclass(frozen=True)
class Launch:
    """A started run's processes.

    `control` is a gloo group for small host messages (stop flags, hashes). It is apart from the group that reduces
    gradients, so that a message read one step late never waits behind a gradient. `store` is this attempt's own part of
    the launcher's store. `progress` is what this rank does. `groups` are all that `host_group` has made.
    """

    rank: Rank
    device: torch.device
    control: dist.ProcessGroup
    store: dist.Store
    progress: Progress = field(default_factory=Progress)
    groups: list[dist.ProcessGroup] = field(default_factory=list)

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank.is_main

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.rank.world_size

    def mesh(self) -> DeviceMesh:
        """Return the one-dimensional mesh of all ranks, which hold equal shares of the data."""
        return init_device_mesh(self.device.type, (self.world_size,), mesh_dim_names=("data",))

    def host_group(self) -> dist.ProcessGroup:
        """Return a new gloo group of all ranks, for messages that wait behind no others. Collective."""
        self.groups.append(_host_group())
        return self.groups[-1]

    @property
    def collectives_begun(self) -> int:
        """Number of collectives that this rank has begun: a rank that others wait for has begun fewer than they."""
        groups = [dist.group.WORLD, self.control, *self.groups]
        # Not in torch's stubs.
        return sum(group._get_sequence_number_for_group() for group in groups if group is not None)  # type: ignore[attr-defined]

    def share(self, value: T | None) -> T | None:
        """Return the main rank's `value` at every rank. Collective."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]


def _host_group() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # every rank is a member
    return group


def choose_device(choice: Literal["auto", "cpu", "cuda"], local_rank: int) -> torch.device:
    """Return the device of this rank: CUDA device `local_rank`, or the CPU."""
    if choice == "cuda" or (choice == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def _join(backend: str, device: torch.device, rank: Rank, timeout_s: float, folder: Path | None) -> dist.Store:
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (MASTER_ADDR, MASTER_PORT)"
    try:
        store = _meet(rank, timeout_s, folder)
        dist.init_process_group(
            backend,
            store=store,
            rank=rank.rank,
            world_size=rank.world_size,
            device_id=device if device.type == "cuda" else None,
        )
        return store
    except MeetingError as error:
        raise RankError(f"the ranks cannot meet at {place} within {timeout_s:g} s: {error}") from error
    except dist.DistError as error:
        (first, *_) = str(error).splitlines()
        raise ConfigError(
            f"the ranks cannot meet at {place}: {first}; choose a free port with torchrun's --master-port, or give "
            "--standalone on a single node"
        ) from error


def _meet(rank: Rank, timeout_s: float, folder: Path | None) -> dist.Store:
    """Return this attempt's part of the store in which the ranks find each other.

    Raises:
        MeetingError: not all came in time.
        DistError: there is no store.
    """
    if folder is not None and not rank.is_main and may_differ():
        return open_meeting(MeetingPlaces(folder, timeout_s).stores, rank.rank, rank.world_size, timeout_s)
    served, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    with noted_place(folder) if folder is not None and may_differ() else nullcontext():
        return open_meeting(lambda: [served], rank.rank, rank.world_size, timeout_s)


@contextmanager
def start(
    choice: Literal["auto", "cpu", "cuda"],
    timeout_s: float = DistributedConfig.start_timeout,
    folder: Path | None = None,
) -> Iterator[Launch]:
    """Join the process group (NCCL for CUDA, gloo for the CPU) and leave it at the end.

    Without torchrun's environment a group of one is made over an in-process store, so that nothing downstream asks
    whether there is a group. All ranks must have come within `timeout_s` seconds.

    Raises:
        ConfigError: the ranks cannot meet where the environment says.
    """
    rank = Rank.from_environment()
    device = choose_device(choice, rank.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _RECORDED)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        store = _join(backend, device, rank, timeout_s, folder)
    else:
        store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    yield Launch(rank, device, _host_group(), store)
    dist.destroy_process_group()  # not after an exception: it would wait for messages that never come
