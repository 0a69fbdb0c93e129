"""A decoder with a fault that ends its process, as torchvision's for PNG has; a module of its own, quick to import."""

import os
import signal

from rlpheads.loaders.sources.strict_decoding import examine_files


def dies_at_seven(most_seconds: float, paths: list[str], sizes: list[int]) -> list:
    if any(path.endswith("007.jpg") for path in paths):
        os.kill(os.getpid(), signal.SIGSEGV)
    return examine_files(most_seconds, paths, sizes)


def never_ends_at_seven(most_seconds: float, paths: list[str], sizes: list[int]) -> list:
    if any(path.endswith("007.jpg") for path in paths):
        signal.setitimer(signal.ITIMER_PROF, most_seconds)
        while True:
            pass
    return examine_files(most_seconds, paths, sizes)
