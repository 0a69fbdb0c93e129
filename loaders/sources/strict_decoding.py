"""Every file of a split decoded once, strictly, in processes of their own: what a lenient decoder would make up is damage.

A decoder that ends its process (a fault of its C code), or that is ended because it takes too long, is survived: the file
that it died of is found by halving.
"""

from __future__ import annotations

import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import IO

from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.contract.regular_files import read_listed_file
from rlpheads.loaders.decoding.decode import decode_rgb
from rlpheads.loaders.decoding.image_codec import load_codec

Verdict = tuple[str, str] | None
"""(status, reason) of a damaged or unreadable file, as of `BadFile`; None for a whole one."""

ExamineFiles = Callable[[float, list[str], list[int]], list[Verdict]]

MOST_SECONDS = 60.0
"""Processor time of one file. What `rlpheads.loaders.decoding.image_headers` admits takes some seconds at most."""

_Bounded = partial[list[Verdict]]
"""`ExamineFiles` with the time that a file may take."""

_FATAL = "it ends the process of the decoder"

_FILES_PER_TASK = 32


def examine_files(most_seconds: float, paths: list[str], sizes: list[int]) -> list[Verdict]:
    """Decode some files, strictly: what the decoder complains of on standard error is damage.

    Meant for a process of its own: file descriptor 2 is redirected meanwhile, and SIGPROF ends the process where a file
    takes more than `most_seconds` of its time.

    Returns:
        The verdict on each file.
    """
    load_codec()  # no file's own time
    with _standard_error_to_file() as messages:
        verdicts = []
        for path, size in zip(paths, sizes, strict=True):
            signal.setitimer(signal.ITIMER_PROF, most_seconds)
            verdicts.append(_examine_file(path, size, messages))
        signal.setitimer(signal.ITIMER_PROF, 0)
        return verdicts


def _examine_file(path: str, size: int, messages: IO[bytes]) -> Verdict:
    messages.seek(0)
    messages.truncate()
    try:
        data = read_listed_file(Path(path), size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "Truncated File Read")  # Pillow's, on TIFF
            decode_rgb(data)
    except OSError as error:
        return "unreadable", error.strerror or str(error)
    except ValueError as error:
        return "unreadable", str(error)
    messages.seek(0)
    complaint = messages.read().decode("utf-8", "replace").strip()
    return ("damaged", complaint.splitlines()[0]) if complaint else None


@contextmanager
def _standard_error_to_file() -> Iterator[IO[bytes]]:
    """Send what is written to file descriptor 2, by C libraries too, to a temporary file."""
    before = os.dup(2)
    try:
        with tempfile.TemporaryFile(buffering=0) as file:
            os.dup2(file.fileno(), 2)
            yield file
    finally:
        os.dup2(before, 2)
        os.close(before)


def examine_split(
    manifest: Manifest,
    first: int,
    workers: int,
    examine: ExamineFiles = examine_files,
    most_seconds: float = MOST_SECONDS,
) -> Iterator[list[Verdict]]:
    """Yield the verdicts on the files from `first` on, in canonical order, some at a time.

    A file that ends the process of its decoder, or takes it too long, is found by halving, and the others go on.

    Args:
        manifest: The files.
        first: Index of the first that is examined.
        workers: Processes that decode.
        examine: What they do, see `examine_files`; a function of a module.
        most_seconds: Processor time that one file may take.
    """
    bounded = partial(examine, most_seconds)
    while first < manifest.num_samples:
        try:
            for verdicts in _examine_in_pool(manifest, first, workers, bounded):
                first += len(verdicts)
                yield verdicts
        except BrokenProcessPool:
            verdicts = _examine_by_halves(manifest, _task(manifest, first), bounded)
            first += len(verdicts)
            yield verdicts


def _examine_in_pool(manifest: Manifest, first: int, workers: int, examine: _Bounded) -> Iterator[list[Verdict]]:
    """Yield the verdicts in order; raises BrokenProcessPool where a process dies."""
    with _pool(workers) as pool:
        pending: list[Future[list[Verdict]]] = []
        try:
            while first < manifest.num_samples or pending:
                while first < manifest.num_samples and len(pending) < 4 * workers:
                    indices = _task(manifest, first)
                    pending.append(pool.submit(examine, *_paths_and_sizes(manifest, indices)))
                    first = indices.stop
                yield pending.pop(0).result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _examine_by_halves(manifest: Manifest, indices: range, examine: _Bounded) -> list[Verdict]:
    """Examine files one of which ends its process: in halves, and halves of halves, until that one is alone."""
    begin = perf_counter()
    try:
        with _pool(1) as pool:
            return pool.submit(examine, *_paths_and_sizes(manifest, indices)).result()
    except BrokenProcessPool:
        if len(indices) == 1:
            most = examine.args[0]
            is_slow = perf_counter() - begin >= most
            return [("unreadable", f"it is not decoded within {most:g} seconds" if is_slow else _FATAL)]
        middle = len(indices) // 2
        return [v for half in (indices[:middle], indices[middle:]) for v in _examine_by_halves(manifest, half, examine)]


def _pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of processes that leave an interrupt from the terminal to their parent."""
    context = get_context("forkserver")
    context.set_forkserver_preload([examine_files.__module__])  # torch is imported once, not once a process
    return ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))


def _task(manifest: Manifest, first: int) -> range:
    return range(first, min(first + _FILES_PER_TASK, manifest.num_samples))


def _paths_and_sizes(manifest: Manifest, indices: range) -> tuple[list[str], list[int]]:
    return [str(manifest.path(index)) for index in indices], manifest.sizes[indices.start : indices.stop].tolist()
