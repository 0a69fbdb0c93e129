"""Ranks that do not leave a phase: they wait, or go round in one line, or through functions (a long circle)."""

import time

from rlpheads.engine.distributed.progress import Progress


def wait():
    while True:
        time.sleep(1)


def circle():
    while True:
        pass


def long_circle():
    """Go round through functions for ever."""
    numbers = list(range(1000))
    while True:
        numbers = sorted(map(turned, numbers))


def turned(number):
    return (7 * number + 1) % 1009


WAYS = {"wait": wait, "circle": circle, "long circle": long_circle}


def come_late(rank: int) -> None:
    """Let the first rank begin a second after the others."""
    time.sleep(1.0 * (rank == 0))


def stick(victim: int, phase: str, times: int, how: str, rank: int) -> None:
    """Have this process go that way when it begins a phase for the how manyeth time, if it is the victim."""
    enter, begun = Progress.enter, []

    def entered(self, name, step=None):
        enter(self, name, step)
        begun.extend([name] * (name == phase))
        if len(begun) == times:
            WAYS[how]()

    if rank == victim:
        Progress.enter = entered
