"""FFCV's loader with a decoder of ours, and with a thread whose failure always reaches the training.

What differs from FFCV 1.0.2, and why: its random crops follow no seed (a decoder of ours takes the box
of every row); its batches are overwritten by later ones (ours lie in memory that is used again when nobody holds them); it
ignores its decoder's return codes (they are checked); an exception in its thread leaves the training waiting for
ever (it is passed on); it compiles for ten seconds and more in every process (our code is kept on disk); it makes numba's
own type of an array of bytes read-only (the type is mended).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import Empty, Full
from typing import Any

import ffcv
import numba
import numpy as np
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.state import State
from ffcv.traversal_order.base import TraversalOrder
from numba.core.compiler_lock import global_compiler_lock
from numpy.typing import NDArray
from torch import Tensor

from rlpheads.loaders.adapters.batch_memory import BatchMemory
from rlpheads.loaders.adapters.ffcv_kernels import decode_rows
from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.errors import LoaderError
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.sources.beton import BetonSource

_POLL_SECONDS = 0.5
"""How often a waiting thread checks whether the other one still runs."""


@dataclass(frozen=True)
class EpochRequest:
    """What a rank reads of one epoch: samples, their places in the store, crop boxes, and memory for the batches.

    Attributes:
        index_N: Canonical indices, int64 (N,); every `batch_size` of them make a batch.
        rows_N: Where in the store each lies, int64 (N,).
        boxes: Yields the crop boxes of each batch, `ffcv_kernels.BOX` (B,).
        memory: Where batches go.
    """

    index_N: Int64Array
    rows_N: Int64Array
    boxes: Iterator[NDArray[np.void]]
    memory: BatchMemory


@dataclass(frozen=True)
class FfcvBatch:
    """A batch as the reading thread passes it on.

    Attributes:
        index: Canonical indices, int64 (B,); the last batch may be shorter than the others.
        images: uint8 of the memory's whole shape, of which the first B rows are filled in.
        codes: int32 (B,), what FFCV's decoder returned; other than 0: the row is not whole.
    """

    index: Int64Array
    images: Tensor
    codes: NDArray[np.int32]


class KeyedDecoder(SimpleRGBImageDecoder):
    """Decodes a batch into the memory, and with the boxes, that `EpochReader` puts before it."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        """Ask FFCV for no memory: it would be a largest image for each row and batch ahead."""
        return replace(previous_state, jit_mode=True), None

    def generate_code(self) -> Any:
        """Return the compiled code."""
        return decode_rows


class StoredIndex(IntDecoder):
    """The index that the file holds for each row, against which the order is checked."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        """Ask for no memory."""
        return replace(previous_state, jit_mode=True, shape=(1,), dtype=np.dtype("<i8")), None

    def generate_code(self) -> Any:
        """Return a look-up."""
        return lambda rows, memory, indices, storage: indices[rows]  # noqa: ARG005 - FFCV's signature


class _GivenOrder(TraversalOrder):
    """The order that `Order` gives, in FFCV's terms."""

    def sample_order(self, epoch: int) -> Int64Array:  # noqa: ARG002 - FFCV's signature
        """Return what FFCV measures its length by; every epoch brings its own."""
        return self.indices


class FfcvPipeline(ffcv.Loader):
    """FFCV's loader with the two decoders above.

    Attributes:
        decoder_node: Number of the decoder in FFCV's graph, under which its memory goes.
        scratch: uint8 (threads, bytes of the largest image).
    """

    def __init__(self, store: BetonSource, batch_size: int, options: LoaderOptions) -> None:
        """Open the store. `options.num_workers` counts threads; 0 is one."""
        decoder, index = KeyedDecoder(), StoredIndex()
        with _without_ffcv_side_effects():
            super().__init__(
                str(store.path),
                batch_size,
                num_workers=min(max(1, options.num_workers), numba.config.NUMBA_NUM_THREADS),
                os_cache=True,
                seed=0,  # without one FFCV takes a number from NumPy's global generator
                pipelines={"image": [decoder], "label": None, "index": [index]},
                drop_last=False,
                batches_ahead=options.prefetch,
            )
        manager = self.memory_manager  # its tables by page serve FFCV's other manager: much memory for a million images
        manager.ptr_to_size = manager.sample_to_pages = manager.page_to_samples = {}
        self.traversal_order = _GivenOrder(self)
        self.decoder_node = next(node.id for node in self.graph.nodes if node.decoder is decoder)
        images = store.samples["f0"]
        largest = int(np.max(3 * images["height"].astype(np.int64) * images["width"], initial=0))
        self.scratch = np.empty((self.num_workers, largest), dtype=np.uint8)


@contextmanager
def _without_ffcv_side_effects() -> Iterator[None]:
    """Build FFCV's loader without compiling again, and without changing torch's threads or numba's types for the process.

    It sets torch's threads, and it declares its file read-only on the one object that numba has for every array of bytes:
    whatever numba compiles or has compiled for such arrays may then fail with a `KeyError`. Nothing is compiled meanwhile.
    """
    num_threads = torch.get_num_threads()
    with global_compiler_lock:
        array_of_bytes = numba.uint8[::1]
        Compiler.set_enabled(False)
        try:
            yield
        finally:
            Compiler.set_enabled(True)
            array_of_bytes.mutable = True
            torch.set_num_threads(num_threads)


class EpochReader(EpochIterator):
    """FFCV's reading thread; its exceptions, and its end however it comes, are raised where a batch is asked for."""

    def __init__(self, pipeline: FfcvPipeline, request: EpochRequest) -> None:
        """Start to read."""
        self._pipeline, self._request = pipeline, request
        super().__init__(pipeline, request.rows_N.astype(np.uint64))

    def run(self) -> None:
        """Read batch after batch, until `close`."""
        numba.set_num_threads(self._pipeline.num_workers)
        try:
            for number, rows_B in enumerate(self.iter_ixes):
                if not self._put(self._read(number, rows_B)):
                    return
        except BaseException as error:
            self._put(error)

    def __next__(self) -> FfcvBatch:
        """Return the next batch.

        Raises:
            LoaderError: If the thread failed or ended.
        """
        reading = None
        while reading is None:
            alive = self.is_alive()
            try:
                reading = self.output_queue.get(timeout=_POLL_SECONDS)
            except Empty:
                if not alive:
                    raise LoaderError(
                        f"the thread that reads {self._pipeline.fname} ended before its epoch did"
                    ) from None
        if isinstance(reading, LoaderError):
            raise reading
        if isinstance(reading, BaseException):
            reason = f"{type(reading).__name__}: {reading}"
            raise LoaderError(f"the thread that reads {self._pipeline.fname} failed: {reason}") from reading
        return reading

    def close(self) -> None:
        """Stop the thread, and wait for it."""
        self.terminate_event.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join()

    def _read(self, number: int, rows_B: NDArray[np.uint64]) -> FfcvBatch:
        request, batch_size = self._request, self._pipeline.batch_size
        index_B = request.index_N[number * batch_size : (number + 1) * batch_size]
        images_B3SS = request.memory.take()
        memory = (images_B3SS.numpy(), next(request.boxes), self._pipeline.scratch, np.empty(len(rows_B), np.int32))
        # FFCV takes element 0 of each, the slot given below, and of that as much as the batch has rows.
        self.memory_allocations["operation"][self._pipeline.decoder_node] = tuple([each] for each in memory)
        (_, codes_B), stored_B = self.run_pipeline(number, rows_B, 0, None)
        if not np.array_equal(stored_B, rows_B.astype(np.int64)):
            raise LoaderError(
                f"{self._pipeline.fname} has samples {stored_B.tolist()} where {rows_B.tolist()} should be"
            )
        return FfcvBatch(index_B, images_B3SS, codes_B)

    def _put(self, reading: FfcvBatch | BaseException) -> bool:
        """Put a batch or an error into the queue once there is room; return False if the epoch was closed meanwhile."""
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(reading, timeout=_POLL_SECONDS)
            except Full:
                continue
            return True
        return False
