"""A process in which Triton's interpreter runs the kernels on the CPU.

Triton decides when it is imported whether it interprets, and torch.compile needs a Triton that does not: so the interpreter
gets a process of its own, one for all tests of a worker.
"""

import multiprocessing
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch


class Interpreter:
    """Calls functions in that process; their exceptions, failed assertions among them, are raised here."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(max_workers=1, mp_context=spawn, initializer=_begin)

    def __call__(self, function: Callable[..., Any], *arguments: object) -> Any:
        return self._pool.submit(function, *arguments).result()

    def close(self) -> None:
        self._pool.shutdown()


def _begin() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)  # 0·(−inf), masked out afterwards
