"""Ranks whose node's first one takes its time to copy a file, and may die of it."""

import os
import signal
import time

from rlpheads.loaders.sources import local_copy


def copy_slowly(rank, *, seconds=0.01, killed_at=None):
    """Make this rank wait at each file that it copies, and die at one; only rank 0 may copy."""
    copy_file, begun = local_copy._copy_file, []

    def copied(path, size, part, tally):
        assert rank == 0, "the node's first rank alone copies"
        begun.append(path)
        if len(begun) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(seconds)
        copy_file(path, size, part, tally)

    local_copy._copy_file = copied
