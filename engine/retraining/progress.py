"""How far a long piece of work is, and when it will be done: a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console

_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def training_progress(console: Console, name: str, num_epochs: int) -> Iterator[Callable[[int], None]]:
    """Tell of the training of networks.

    Args:
        console: where.
        name: of the run.
        num_epochs: epochs of all networks together; 0 tells nothing.

    Yields:
        What is called with the epochs that were trained since the last call.
    """
    begun = told = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, told
        done += count
        now = time.monotonic()
        if now - told < _SECONDS_BETWEEN_LINES and done < num_epochs:
            return
        told = now
        left = timedelta(seconds=round((now - begun) / done * (num_epochs - done)))
        console.print(f"{name}: {done / num_epochs:.0%} of the networks' epochs trained, ETA {left}", soft_wrap=True)

    yield advance
