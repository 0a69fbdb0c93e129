"""`engine/train.py`, one of whose ranks does not leave a phase: the variable STUCK says which and how, as JSON.

rank; phase, and the how manyeth `time` that it begins; how: wait, circle (one line), or long circle (through functions).
"""

import json
import os
import sys
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


def stick(phase: str, time: int, how: str) -> None:
    """Have this process go that way when it begins a phase for that time."""
    enter, begun = Progress.enter, []

    def entered(self, name, step=None):
        enter(self, name, step)
        begun.extend([name] * (name == phase))
        if len(begun) == time:
            WAYS[how]()

    Progress.enter = entered


if __name__ == "__main__":
    from rlpheads.engine import train

    wanted = json.loads(os.environ["STUCK"])
    if wanted.pop("rank") == int(os.environ.get("RANK", "0")):
        stick(**wanted)
    sys.exit(train.main())
