"""Asynchronous copies of batches to a device, one batch ahead of the step that uses it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.loader import Loader, PositionedLoader, check_state

BatchGetter = Callable[[], Batch]
"""Returns a batch once the caller's stream may use it, or raises the loader's error."""


def deliver(loader: Loader, device: torch.device) -> Loader:
    """Return a loader whose batches lie on a device; for the CPU the loader itself.

    On a CUDA device two batches lie there at any time, the one in use and the next, which a stream of its own copies
    meanwhile. Their images are uint8 in channels-last order.
    """
    return loader if device.type == "cpu" else BatchPrefetcher(loader, CudaCopier(device).send)


class BatchPrefetcher(PositionedLoader):
    """A loader that starts the copy of each batch before it yields the one in front of it.

    Its position counts what was yielded: a batch that is still being copied is loaded again after a resume. An error of
    the loader is raised after the batches in front of it.

    Attributes:
        order: Which sample stands where.
        manifest: The samples of the split.
    """

    def __init__(self, loader: Loader, send: Callable[[Batch], BatchGetter]) -> None:
        """Prepare.

        Args:
            loader: Where the batches come from; nobody else may iterate over it or move it.
            send: Starts the copy of a batch and does not wait for it.
        """
        super().__init__(loader.order, loader.manifest)
        self._loader = loader
        self._send = send
        self._epoch, self._consumed = check_state(loader.state_dict())

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch, and raise what the loader raises."""
        first_step = self.order.step_at(self._consumed)
        self._loader.set_epoch(self._epoch, self._consumed)
        batches = iter(self._loader)
        in_flight = deque([self._send_next(batches)] if first_step < self.order.num_steps else [])
        for step in range(first_step, self.order.num_steps):
            if step + 1 < self.order.num_steps:
                in_flight.append(self._send_next(batches))
            batch = in_flight.popleft()()
            self._consumed = self.order.consumed_after(step)
            yield batch

    def set_epoch(self, epoch: int, consumed: int = 0) -> None:
        """Go to a position; the next iteration begins there.

        Raises:
            ValueError: If no step begins after `consumed` samples.
        """
        super().set_epoch(epoch, consumed)
        self._loader.set_epoch(epoch, consumed)

    def _send_next(self, batches: Iterator[Batch]) -> BatchGetter:
        try:
            return self._send(next(batches))
        except Exception as error:
            return partial(_raise, error)


def _raise(error: Exception) -> Batch:
    try:
        raise error
    finally:
        del error  # or it would hold this frame, and the frame it


class CudaCopier:
    """Copies batches to a CUDA device on a stream of its own, from page-locked memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def send(self, batch: Batch) -> BatchGetter:
        """Start to copy a batch; one that is on the device already, written on the present stream, needs no copy."""
        if batch.images.is_cuda:
            return lambda: batch
        pinned = batch if batch.images.is_pinned() else batch.pin_memory()
        with torch.cuda.stream(self._stream):
            copy = pinned.to(self._device, non_blocking=True)
            # On the device: rearranging on the host would cost it a second pass over the pixels.
            copy = replace(copy, images=copy.images.contiguous(memory_format=torch.channels_last))
            copied = self._stream.record_event()
        return partial(self._hand_over, copy, copied)

    def _hand_over(self, batch: Batch, copied: torch.cuda.Event) -> Batch:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(copied)
        for tensor in (batch.images, batch.targets, batch.index):
            tensor.record_stream(stream)  # or its memory would be given away while this stream still reads it
        return batch
