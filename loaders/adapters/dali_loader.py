"""The loader on NVIDIA DALI: it decodes, cuts and resizes; which image, which crop and in which order is ours.

Threads of this process read files ahead, and DALI is handed their bytes with the crops. No position and no random draw
lives in DALI, so a resume decodes nothing that was consumed and may change the number of ranks and threads.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from rlpheads.loaders.adapters.dali_options import DaliOptions
from rlpheads.loaders.adapters.dali_pipeline import DaliPipeline, Decoded, DecodeError, PipelineSpec
from rlpheads.loaders.adapters.dali_plan import Cutter, Plan
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import ImageReadError, LoaderError
from rlpheads.loaders.contract.loader import PositionedLoader
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import PADDING, Order
from rlpheads.loaders.contract.request import Request, requests
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
        self._cutter = Cutter(crop, order.seed, train)
        self._spec = PipelineSpec(
            image_size=crop.image_size,
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
        plans, begun = self._plans(first_step), deque[Plan]()
        for step in range(first_step, self.order.num_steps):
            self._begin_more(pipeline, plans, begun)
            batch = self._finish(pipeline, begun.popleft())
            self._begin_more(pipeline, plans, begun)
            self._consumed = self.order.consumed_after(step)
            yield batch
            if self._iteration != this_iteration:
                return
        if not self._options.keep_workers:
            self._pipeline = None

    def _idle_pipeline(self) -> DaliPipeline:
        """Return the pipeline, with nothing in it of an iteration that was broken off."""
        if self._pipeline is None:
            self._pipeline = DaliPipeline(self._spec)
        self._pipeline.discard()
        return self._pipeline

    def _plans(self, first_step: int) -> Iterator[Plan]:
        """Yield what is to be made, step by step, while the files of the next ones are being read."""
        rank, world_size = self._options.rank, self._options.world_size
        due = requests(self.order, self._cutter.draw, self._epoch, first_step, rank=rank, world_size=world_size)
        being_read: deque[tuple[Request, list[Future[list[EncodedImage | ImageReadError]]]]] = deque()
        for _ in range(first_step, self.order.num_steps):
            while len(being_read) <= _STEPS_READ_AHEAD and (request := next(due, None)) is not None:
                being_read.append((request, self._start_to_read(request)))
            request, parts = being_read.popleft()
            yield Plan.of(request, [image for part in parts for image in part.result()])

    def _start_to_read(self, request: Request) -> list[Future[list[EncodedImage | ImageReadError]]]:
        samples = request.samples
        return [
            self._readers.submit(read_encoded, self._source, samples[start : start + _READ_AT_ONCE])
            for start in range(0, len(samples), _READ_AT_ONCE)
        ]

    def _begin_more(self, pipeline: DaliPipeline, plans: Iterator[Plan], begun: deque[Plan]) -> None:
        """Begin batches until as many are in the making as may be."""
        while len(begun) < self._spec.depth and (plan := next(plans, None)) is not None:
            if self._is_to_be_made(plan):
                pipeline.schedule(self._cutter.work(plan, self.manifest))
            begun.append(plan)

    def _is_to_be_made(self, plan: Plan) -> bool:
        return bool(plan.images) and (not plan.errors or self._options.on_error == "skip")

    def _finish(self, pipeline: DaliPipeline, plan: Plan) -> Batch:
        """Wait for a batch, or raise what keeps it from being made."""
        self._raise_unless_skipping(plan)
        try:
            batch = _assemble(plan, pipeline.collect() if plan.images else pipeline.nothing())
        except DecodeError as error:
            batch = self._make_again(plan, error)
        return batch.pin_memory() if self._options.pin_memory and not batch.images.is_cuda else batch

    def _raise_unless_skipping(self, plan: Plan) -> None:
        if plan.errors and self._options.on_error == "raise":
            raise ImageReadError(*plan.errors[min(plan.errors)].args)

    def _make_again(self, plan: Plan, failure: DecodeError) -> Batch:
        """Make a batch that DALI could not make from what the source decodes, which tells the image that is to blame.

        A pipeline of its own makes it, since later batches are in the making in the other one.
        """
        again = Plan.of(plan.request, read_pixmaps(self._source, plan.request.samples))
        self._raise_unless_skipping(again)
        pipeline = DaliPipeline(self._spec)
        if not again.images:
            return _assemble(again, pipeline.nothing())
        pipeline.schedule(self._cutter.work(again, self.manifest))
        try:
            return _assemble(again, pipeline.collect())
        except DecodeError as error:
            raise LoaderError(
                f"DALI fails at images that can be read: {failure}; then, of their pixels: {error}"
            ) from error


def _assemble(plan: Plan, decoded: Decoded) -> Batch:
    """Lay the decoded rows of a plan among those that stay black.

    Raises:
        LoaderError: If they are not the rows that were asked for.
    """
    index_B = plan.request.index_B
    if not decoded.index_R.is_cuda and decoded.index_R.tolist() != index_B[plan.rows].tolist():
        raise LoaderError(f"DALI made the samples {decoded.index_R.tolist()} of {index_B[plan.rows].tolist()}")
    if len(plan.images) < len(index_B):
        decoded = _spread(decoded, plan.rows, len(index_B))
    images_B3SS = decoded.images_RSS3.permute(0, 3, 1, 2)
    return Batch(
        images_B3SS, decoded.targets_R, decoded.index_R, plan.request.num_global_rows, tuple(plan.errors.values())
    )


def _spread(decoded: Decoded, rows: list[int], num_rows: int) -> Decoded:
    """Move the decoded rows to their places among `num_rows`; the others become padding."""
    images_RSS3, targets_R, index_R = decoded
    images_BSS3 = images_RSS3.new_zeros((num_rows, *images_RSS3.shape[1:]))
    targets_B, index_B = targets_R.new_zeros(num_rows), index_R.new_full((num_rows,), PADDING)
    place_R = torch.tensor(rows, dtype=torch.int64).to(index_R.device, non_blocking=True)
    images_BSS3[place_R] = images_RSS3
    targets_B[place_R] = targets_R
    index_B[place_R] = index_R
    return Decoded(images_BSS3, targets_B, index_B)
