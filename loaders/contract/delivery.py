"""Batches on their way to a device: copied beside the step that runs, one ahead of the step that waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.loader import Loader, PositionedLoader, check_state

HandOver = Callable[[], Batch]
"""Gives out a batch that was sent, fit for whatever the caller launches next, or raises what kept it from being made."""


def deliver(loader: Loader, device: torch.device) -> Loader:
    """Return a loader whose batches lie on a device; for the CPU the loader itself.

    On a CUDA device two batches lie there at any time, the one in use and the next, which a stream of its own copies
    meanwhile. Their images are uint8 in channels-last order.
    """
    return loader if device.type == "cpu" else OneAhead(loader, CudaCourier(device).send)


class OneAhead(PositionedLoader):
    """A loader that sends each batch on its way before the one in front of it is handed over.

    Its position counts what was handed over: a batch that is still on its way is loaded again after a resume. What the
    loader raises is raised in its turn, behind the batches in front of it.

    Attributes:
        order: Which sample stands where.
        manifest: The samples of the split.
    """

    def __init__(self, loader: Loader, send: Callable[[Batch], HandOver]) -> None:
        """Prepare.

        Args:
            loader: Where the batches come from; nobody else may iterate over it or move it.
            send: Starts the transport of a batch and does not wait for its end.
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
        on_their_way = deque([self._send_next(batches)] if first_step < self.order.num_steps else [])
        for step in range(first_step, self.order.num_steps):
            if step + 1 < self.order.num_steps:
                on_their_way.append(self._send_next(batches))
            batch = on_their_way.popleft()()
            self._consumed = self.order.consumed_after(step)
            yield batch

    def set_epoch(self, epoch: int, consumed: int = 0) -> None:
        """Go to a position; the next iteration begins there.

        Raises:
            ValueError: If no step begins after `consumed` samples.
        """
        super().set_epoch(epoch, consumed)
        self._loader.set_epoch(epoch, consumed)

    def _send_next(self, batches: Iterator[Batch]) -> HandOver:
        try:
            return self._send(next(batches))
        except Exception as error:
            return partial(_raise, error)


def _raise(error: Exception) -> Batch:
    try:
        raise error
    finally:
        del error  # or it would hold this frame, and the frame it


class CudaCourier:
    """Copies batches to a CUDA device on a stream of its own, from page-locked memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def send(self, batch: Batch) -> HandOver:
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
