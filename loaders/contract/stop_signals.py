"""The signals that stop a run. Threads and processes of a loader have them blocked: the training process answers them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""torchrun and schedulers send SIGTERM; SIGUSR1 is Slurm's early warning; SIGINT is Ctrl-C (a second one kills); SIGHUP says
that the terminal is gone, such as an ssh connection's."""


def ignored_stop_signals() -> tuple[signal.Signals, ...]:
    """Return the stop signals that stay ignored: SIGHUP under `nohup`, which keeps a run going past its terminal."""
    return (signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else ()


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block the stop signals here for a moment; threads and processes started within have them blocked for good.

    A signal to a process goes to any thread that lets it through. Should it be a library's thread, the main thread goes
    on with the call that it is in, however long that waits.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
