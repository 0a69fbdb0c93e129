"""The loader on torch.utils.data: stateless workers that get (epoch, indices) and return whole batches."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from rlpheads.loaders.adapters.torch_batches import BatchMaker, CurrentImages
from rlpheads.loaders.adapters.torch_transforms import ImageTransform
from rlpheads.loaders.adapters.worker_heartbeats import WorkerHeartbeats
from rlpheads.loaders.adapters.worker_surroundings import why_no_sockets
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.errors import ImageReadError, LoaderError
from rlpheads.loaders.contract.loader import PositionedLoader
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.contract.request import Draw, Request, rank_requests
from rlpheads.loaders.contract.stop_signals import STOP_SIGNALS, stop_signals_blocked
from rlpheads.loaders.sources.datasets import ImageSource

_NO_SHARED_MEMORY = "unable to allocate shared memory"
"""Torch's words; it has no exception of its own for this."""


class TorchLoader(PositionedLoader):
    """Batches of a source in the order of an `Order`; see `rlpheads.loaders.contract.loader.Loader`.

    One iteration at a time: beginning another one ends the one before.

    Attributes:
        order: Which sample stands where.
        manifest: The samples of the split.
    """

    def __init__(
        self, source: ImageSource, order: Order, transform: ImageTransform, options: LoaderOptions | None = None
    ) -> None:
        """Prepare; workers start at the first iteration, and stay.

        Raises:
            LoaderError: If workers are wanted, and cannot hand batches over on this machine.
            ValueError: If the order is for another number of samples, or cannot be cut for this world size.
        """
        options = options or LoaderOptions()
        if options.num_workers and (reason := why_no_sockets()) is not None:
            raise LoaderError(reason)
        super().__init__(order, source.manifest, options.world_size)
        self._current_images = CurrentImages(options.num_workers)
        self._heartbeats, self._silence_s = WorkerHeartbeats(options.num_workers), options.worker_silence_s
        self._requests = _Requests(order, transform.draw, options.rank, options.world_size)
        self._batches: DataLoader[Batch | ImageReadError] = DataLoader(
            BatchMaker(source, transform, options.on_error == "skip", self._current_images),
            batch_size=None,
            sampler=self._requests,
            collate_fn=_no_collation,
            num_workers=options.num_workers,
            multiprocessing_context=_start_method() if options.num_workers else None,
            prefetch_factor=options.prefetch if options.num_workers else None,
            persistent_workers=options.keep_workers and options.num_workers > 0,
            pin_memory=options.pin_memory,
            worker_init_fn=partial(_init_worker, self._heartbeats),
            # Its own generator: without one, every iter() takes a number from the global stream.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch.

        Raises:
            ImageReadError: If an image cannot be read and is not to be skipped; the same with any number of workers.
            LoaderError: If a worker dies, or gives no sign of life, or /dev/shm has no room for its batch.
        """
        first_step = self.order.step_at(self._consumed)
        self._requests.epoch, self._requests.first_step = self._epoch, first_step
        with ExitStack() as watch:
            with _guarded_worker_start():
                watch.enter_context(self._heartbeats.watched(self._silence_s))
                batches = iter(self._batches)
            for step in range(first_step, self.order.num_steps):
                batch = self._next(batches)
                self._consumed = self.order.consumed_after(step)
                yield batch

    def _next(self, batches: Iterator[Batch | ImageReadError]) -> Batch:
        """Return the next batch, or raise a worker's error."""
        try:
            item = next(batches)
        except (RuntimeError, OSError, EOFError) as error:
            if self._heartbeats.frozen is not None:
                pid, state = self._heartbeats.frozen
                raise LoaderError(
                    f"a loader worker gave no sign of life for {self._silence_s:.0f} s{self._reading(f'pid {pid}')}: "
                    f"process {pid}, which was {state}"
                ) from error
            if _NO_SHARED_MEMORY in str(error):
                raise LoaderError(_full_shared_memory(str(error))) from error
            if "DataLoader worker" not in str(error):
                raise
            raise LoaderError(self._dead_worker_message(str(error))) from error
        if isinstance(item, ImageReadError):
            # A new one: raised itself, `item` would hold this frame, and so the workers, in a cycle of references.
            raise ImageReadError(*item.args)
        return item

    def _reading(self, report: str) -> str:
        """Say which image the worker whose process id is in `report` was reading, as far as known."""
        index = self._current_images.of_dead_worker(report)
        if index is None:
            return ""
        name = self.manifest.name(index) if self.manifest.root is None else self.manifest.path(index)
        return f" while it read image {index} ({name})"

    def _dead_worker_message(self, report: str) -> str:
        """Return the message for a dead worker: what it was reading, as far as known, and the usual cause."""
        return (
            f"a loader worker died{self._reading(report)}; the usual cause is memory (the host's, or /dev/shm): lower the "
            f"number of workers or of batches read ahead. If it is always the same image, take it out. {report}"
        )


@dataclass
class _Requests:
    """The sampler: this rank's requests to its workers from a step to the end of an epoch."""

    order: Order
    draw: Draw
    rank: int
    world_size: int
    epoch: int = 0
    first_step: int = 0

    def __iter__(self) -> Iterator[Request]:
        return rank_requests(
            self.order, self.draw, self.epoch, self.first_step, rank=self.rank, world_size=self.world_size
        )


def _full_shared_memory(report: str) -> str:
    """Return the message for a batch that found no room; `report` is torch's, which ends with the worker's own words."""
    words = next(line for line in report.splitlines() if _NO_SHARED_MEMORY in line)
    return (
        f"/dev/shm is full ({words.removeprefix('RuntimeError: ')}); give it more room (docker run --shm-size 8g), or load "
        "with fewer workers or smaller batches"
    )


def _start_method() -> str | None:
    """Return how workers are started: as everything else, but by no fork server.

    That, Python's default from 3.14 on, would be the parent of the workers, which then outlive this process where it is killed.
    """
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return "fork" if method == "forkserver" else method


def _no_collation(item: Any) -> Any:
    """Return a batch as it is: it is collated already."""
    return item


@contextmanager
def _guarded_worker_start() -> Iterator[None]:
    """Start workers with the stop signals blocked, and keep torch's handler for dead workers out of this process.

    Whatever starts within has the stop signals blocked from its first moment. Torch's handler of SIGCHLD raises wherever
    the main thread happens to be, in the middle of a checkpoint for one; without it a death is still found, within five
    seconds, but where a batch is asked for.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    on_death = signal.getsignal(signal.SIGCHLD)
    try:
        with stop_signals_blocked():
            yield
    finally:
        if in_main_thread and on_death is not None:
            signal.signal(signal.SIGCHLD, on_death)


def _init_worker(heartbeats: WorkerHeartbeats, worker_id: int) -> None:
    """Prepare a worker: keep the parent's objects in shared memory, and leave the stop signals to the parent."""
    gc.freeze()  # a collection would write into every one of them, and so take a copy of its page
    _block_stop_signals_except_the_parents()
    heartbeats.start(worker_id)


def _block_stop_signals_except_the_parents() -> None:
    """Block the stop signals of a launcher or terminal: the parent gets them too, and still needs its batches.

    Ignoring them outright would also ignore the SIGTERM with which the parent ends its workers when it exits, and then
    waits for them without end.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_exit_on_the_parents_sigterm, daemon=True).start()


def _exit_on_the_parents_sigterm() -> None:
    """Consume blocked signals until the parent sends SIGTERM, then exit."""
    while True:
        taken = signal.sigwaitinfo(STOP_SIGNALS)
        if taken.si_signo == signal.SIGTERM and taken.si_pid == os.getppid():
            # The worker holds nothing that needs an orderly end.
            os._exit(0)
