"""The loader on NVIDIA DALI: DALI decodes, crops and resizes; order and crops are those of the contract.

Threads of this process read files ahead, and DALI is handed their bytes with the crops. No position and no random draw
lives in DALI, so a resume decodes nothing that was consumed and may change the number of ranks and threads.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from rlpheads.loaders.adapters.dali_inputs import Cropper, FetchedRequest
from rlpheads.loaders.adapters.dali_options import DaliOptions
from rlpheads.loaders.adapters.dali_pipeline import DaliPipeline, Decoded, DecodeError, PipelineSpec
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import ImageReadError, LoaderError
from rlpheads.loaders.contract.loader import PositionedLoader
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import PADDING, Order
from rlpheads.loaders.contract.request import Request, rank_requests
from rlpheads.loaders.contract.stop_signals import STOP_SIGNALS
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.loaders.sources.encoded_source import EncodedImage, read_encoded, read_pixmaps

_READ_AT_ONCE = 32
"""Files that one thread reads for a batch; the next ones are another thread's."""
_READERS_PER_THREAD = 4
"""Threads that read for each one that decodes: they mostly wait for a disk or a network."""
_STEPS_READ_AHEAD = 2
"""Batches whose files are read before DALI can begin with them."""


class DaliLoader(PositionedLoader):
    """Batches of a source in the order of an `Order`; see `rlpheads.loaders.contract.loader.Loader`.

    `LoaderOptions.num_workers` counts threads that decode here, and 0 is one. The batches lie on the device that decodes
    (`DaliOptions.device_id`). One iteration at a time: beginning another one ends the one before.

    Attributes:
        order: Which sample stands where.
        manifest: The samples of the split.
    """

    def __init__(
        self,
        source: ImageSource,
        order: Order,
        crop: CropSpec,
        *,
        train: bool,
        options: LoaderOptions | None = None,
        dali: DaliOptions | None = None,
    ) -> None:
        """Prepare; threads start at the first iteration, and stay.

        Raises:
            ValueError: If the order is for another number of samples, or cannot be cut for this world size.
        """
        options = options or LoaderOptions()
        super().__init__(order, source.manifest, options.world_size)
        num_threads = max(1, options.num_workers)
        self._source = source
        self._options = options
        self._crop = crop if train else replace(crop, early_sizes=())
        self._cropper = Cropper(crop, order.seed, train)
        self._spec = PipelineSpec(
            image_size=self._crop.at(0).image_size,
            interpolation=crop.interpolation,
            max_rows=order.batch_size // options.world_size,
            num_threads=num_threads,
            depth=options.prefetch,
            options=dali or DaliOptions(),
        )
        self._pipeline: DaliPipeline | None = None
        self._readers = ThreadPoolExecutor(
            _READERS_PER_THREAD * num_threads, "reader", signal.pthread_sigmask, (signal.SIG_BLOCK, STOP_SIGNALS)
        )
        self._iteration = 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch.

        Raises:
            ImageReadError: If an image cannot be read and is not to be skipped.
            LoaderError: If DALI fails for another reason.
        """
        pipeline = self._idle_pipeline()
        self._iteration += 1
        this_iteration = self._iteration
        first_step = self.order.step_at(self._consumed)
        fetched_requests, scheduled = self._fetched_requests(first_step), deque[FetchedRequest]()
        for step in range(first_step, self.order.num_steps):
            self._schedule_ahead(pipeline, fetched_requests, scheduled)
            batch = self._collect_batch(pipeline, scheduled.popleft())
            self._schedule_ahead(pipeline, fetched_requests, scheduled)
            self._consumed = self.order.consumed_after(step)
            yield batch
            if self._iteration != this_iteration:
                return
        if not self._options.keep_workers:
            self._pipeline = None

    def _idle_pipeline(self) -> DaliPipeline:
        """Return the pipeline for the epoch's size, empty of what an interrupted iteration had scheduled."""
        size = self._crop.at(self._epoch).image_size
        if self._spec.image_size != size:
            self._spec, self._pipeline = replace(self._spec, image_size=size), None
        if self._pipeline is None:
            self._pipeline = DaliPipeline(self._spec)
        self._pipeline.discard()
        return self._pipeline

    def _fetched_requests(self, first_step: int) -> Iterator[FetchedRequest]:
        """Yield each step's request with its images, while the files of the next ones are being read."""
        rank, world_size = self._options.rank, self._options.world_size
        due = rank_requests(self.order, self._cropper.draw, self._epoch, first_step, rank=rank, world_size=world_size)
        being_read: deque[tuple[Request, list[Future[list[EncodedImage | ImageReadError]]]]] = deque()
        for _ in range(first_step, self.order.num_steps):
            while len(being_read) <= _STEPS_READ_AHEAD and (request := next(due, None)) is not None:
                being_read.append((request, self._start_reading(request)))
            request, parts = being_read.popleft()
            yield FetchedRequest.from_read(request, [image for part in parts for image in part.result()])

    def _start_reading(self, request: Request) -> list[Future[list[EncodedImage | ImageReadError]]]:
        samples = request.samples
        return [
            self._readers.submit(read_encoded, self._source, samples[start : start + _READ_AT_ONCE])
            for start in range(0, len(samples), _READ_AT_ONCE)
        ]

    def _schedule_ahead(
        self, pipeline: DaliPipeline, fetched_requests: Iterator[FetchedRequest], scheduled: deque[FetchedRequest]
    ) -> None:
        """Schedule batches until as many are scheduled as the pipeline is deep."""
        while len(scheduled) < self._spec.depth and (fetched := next(fetched_requests, None)) is not None:
            if self._decodes(fetched):
                pipeline.schedule(self._cropper.pipeline_input(fetched, self.manifest))
            scheduled.append(fetched)

    def _decodes(self, fetched: FetchedRequest) -> bool:
        return bool(fetched.images) and (not fetched.errors or self._options.on_error == "skip")

    def _collect_batch(self, pipeline: DaliPipeline, fetched: FetchedRequest) -> Batch:
        """Wait for a batch, or raise why it cannot be decoded."""
        self._raise_unless_skipping(fetched)
        try:
            batch = _make_batch(fetched, pipeline.collect() if fetched.images else pipeline.empty())
        except DecodeError as error:
            batch = self._decode_again_from_pixels(fetched, error)
        return batch.pin_memory() if self._options.pin_memory and not batch.images.is_cuda else batch

    def _raise_unless_skipping(self, fetched: FetchedRequest) -> None:
        if fetched.errors and self._options.on_error == "raise":
            raise ImageReadError(*fetched.errors[min(fetched.errors)].args)

    def _decode_again_from_pixels(self, fetched: FetchedRequest, failure: DecodeError) -> Batch:
        """Decode a batch that DALI could not decode by the source, which names the image at fault, and let DALI resize it.

        It has a pipeline of its own, since later batches are scheduled in the other one.
        """
        again = FetchedRequest.from_read(fetched.request, read_pixmaps(self._source, fetched.request.samples))
        self._raise_unless_skipping(again)
        pipeline = DaliPipeline(self._spec)
        if not again.images:
            return _make_batch(again, pipeline.empty())
        pipeline.schedule(self._cropper.pipeline_input(again, self.manifest))
        try:
            return _make_batch(again, pipeline.collect())
        except DecodeError as error:
            raise LoaderError(
                f"DALI fails at images that can be read: {failure}; then, of their pixels: {error}"
            ) from error


def _make_batch(fetched: FetchedRequest, decoded: Decoded) -> Batch:
    """Assemble a batch from the decoded rows of a request; the others are padding.

    Raises:
        LoaderError: If they are not the rows that were asked for.
    """
    index_B = fetched.request.index_B
    if not decoded.index_R.is_cuda and decoded.index_R.tolist() != index_B[fetched.rows].tolist():
        raise LoaderError(f"DALI made the samples {decoded.index_R.tolist()} of {index_B[fetched.rows].tolist()}")
    if len(fetched.images) < len(index_B):
        decoded = _insert_padding(decoded, fetched.rows, len(index_B))
    host_index_B = np.full_like(index_B, PADDING)
    host_index_B[fetched.rows] = index_B[fetched.rows]
    return Batch(
        images=decoded.images_RSS3.permute(0, 3, 1, 2),
        targets=decoded.targets_R,
        index=decoded.index_R,
        num_global_rows=fetched.request.num_global_rows,
        skipped=tuple(fetched.errors.values()),
        host_index=host_index_B,
        is_full=len(fetched.images) == len(index_B),
    )


def _insert_padding(decoded: Decoded, rows: list[int], num_rows: int) -> Decoded:
    """Move the decoded rows to their places among `num_rows`; the others become padding."""
    images_RSS3, targets_R, index_R = decoded
    images_BSS3 = images_RSS3.new_zeros((num_rows, *images_RSS3.shape[1:]))
    targets_B, index_B = targets_R.new_zeros(num_rows), index_R.new_full((num_rows,), PADDING)
    place_R = torch.tensor(rows, dtype=torch.int64).to(index_R.device, non_blocking=True)
    images_BSS3[place_R] = images_RSS3
    targets_B[place_R] = targets_R
    index_B[place_R] = index_R
    return Decoded(images_BSS3, targets_B, index_B)
