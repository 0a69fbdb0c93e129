"""The stores in which rank 0 may wait for the others: the one that the launcher names, and the one that rank 0 has noted.

torchrun (2.14, dynamic_rendezvous.py: `_bootstrap_store_info`) tells its ranks for ever the address that it was told first.
Where another node takes the number of rank 0, the ranks of the others would come to a store that is gone, or that nobody else
looks into. So rank 0 notes in the run folder, which all nodes see, where it is.

What no rank can mend: a torchrun that joins later, and not as rank 0, looks for that address among the keys of the new
round, where the others, which know it, do not write it. It ends after a minute, unless TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is
set everywhere. `rlpheads train` and the scripts in launch/ set it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from rlpheads.memorization.atomic_file import atomic_file

NOTE = "meeting.txt"
"""File in the run folder, with HOST:PORT."""
_CONNECT = timedelta(seconds=5)


def may_differ() -> bool:
    """Whether torchrun runs several nodes of this job, whose launchers share a store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE", "1") != "1"


@contextmanager
def noted_place(folder: Path) -> Iterator[None]:
    """Note in a run folder where this rank's launcher serves its store, until all have come."""
    with atomic_file(folder / NOTE) as temporary:
        temporary.write_text(_address())
    try:
        yield
    finally:
        (folder / NOTE).unlink(missing_ok=True)


class MeetingPlaces:
    """The stores that a rank other than 0 looks into, each connected to when it can be.

    Args:
        folder: with rank 0's note.
        timeout_s: seconds of the stores that are found.
    """

    def __init__(self, folder: Path, timeout_s: float):
        self._folder = folder
        self._timeout = timedelta(seconds=timeout_s)
        self._stores: dict[str, dist.Store] = {}

    def stores(self) -> Sequence[dist.Store]:
        """Return those that can be reached now; may take seconds."""
        for address in (*self._noted(), _address()):
            if address not in self._stores:
                host, _, port = address.rpartition(":")
                with suppress(dist.DistError, ValueError):  # gone, or not there yet
                    store = dist.TCPStore(host, int(port), is_master=False, timeout=_CONNECT, wait_for_workers=False)
                    store.set_timeout(self._timeout)
                    self._stores[address] = store
        return list(self._stores.values())

    def _noted(self) -> Iterator[str]:
        with suppress(OSError):  # none, mostly
            yield (self._folder / NOTE).read_text()


def _address() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
