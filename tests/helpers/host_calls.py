"""The host's work, counted in calls: a number that is the same on every machine."""

import gc
import sys
from collections.abc import Callable
from types import FrameType


def count_calls(action: Callable[[], object]) -> int:
    """Count the calls of Python and C functions that Python code makes in this thread."""
    count = 0

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before, collects = sys.getprofile(), gc.isenabled()
    gc.disable()  # a collection calls whoever asked to be told of it, hypothesis for one
    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()
    return count
