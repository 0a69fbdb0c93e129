"""Forbids what makes the host wait for a CUDA device."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_device_waits() -> Iterator[None]:
    """Every operation inside that waits for the device raises; the mode of before comes back in any case.

    Torch warns, once a process or always, that it does not see all such operations. That warning alone is passed over.
    """
    before = torch.cuda.get_sync_debug_mode()
    try:
        _set_mode("error")
        yield
    finally:
        _set_mode(before)


def _set_mode(mode: int | str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
        torch.cuda.set_sync_debug_mode(mode)
