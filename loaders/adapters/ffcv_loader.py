"""The loader on FFCV: its files, memory map, JPEG decoder and pipeline, with the order and the crops of the contract."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from rlpheads.loaders.adapters.batch_memory import BatchMemory
from rlpheads.loaders.adapters.ffcv_boxes import CropBoxes
from rlpheads.loaders.adapters.ffcv_pipeline import EpochReader, EpochRequest, FfcvPipeline
from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import LoaderError
from rlpheads.loaders.contract.loader import PositionedLoader
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.sources.datasets import ImageSource


class FfcvLoader(PositionedLoader):
    """Batches of a store in the order of an `Order`; see `rlpheads.loaders.contract.loader.Loader`.

    `LoaderOptions.num_workers` counts threads here, and 0 is one thread. A batch's images are the caller's to keep.

    Attributes:
        order: Which sample stands where.
        manifest: The samples of the split.
    """

    def __init__(
        self, source: ImageSource, order: Order, crop: CropSpec, *, train: bool, options: LoaderOptions | None = None
    ) -> None:
        """Open the file and build the pipeline; the thread starts with an iteration.

        Raises:
            DatasetError: If the source is not a store.
            ValueError: If the order is for another number of samples, or cannot be cut for this world size.
        """
        options = options or LoaderOptions()
        super().__init__(order, source.manifest, options.world_size)
        self._options = options
        self._boxes = CropBoxes(source, order.seed, crop, train=train)
        num_rows = order.batch_size // options.world_size
        self._pipeline = FfcvPipeline(self._boxes.store, num_rows, options)
        self._crop = crop if train else replace(crop, early_sizes=())
        self._memory = self._make_memory(epoch=0)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch.

        Raises:
            ImageReadError: If an image cannot be read and is not to be skipped.
            LoaderError: If the thread ends otherwise than it should, or yields other samples than it was asked for.
        """
        epoch, first_step = self._epoch, self.order.step_at(self._consumed)
        index_SB = self._shares(epoch, first_step)
        index_N = index_SB[index_SB >= 0]
        if self._memory.shape[-1] != self._crop.at(epoch).image_size:
            self._memory = self._make_memory(epoch)
        keys_SB = self.order.draw_keys(index_SB, self._options.rank, self._options.world_size)
        boxes = self._boxes.batches(epoch, index_N, keys_SB[index_SB >= 0], self._pipeline.batch_size)
        reading = EpochReader(self._pipeline, EpochRequest(index_N, self._boxes.rows_N[index_N], boxes, self._memory))
        try:
            for step, index_B in enumerate(index_SB, first_step):
                batch = self._next_batch(index_B, self.order.rows_at(step), reading)
                self._consumed = self.order.consumed_after(step)
                yield batch
        finally:
            reading.close()

    def _make_memory(self, epoch: int) -> BatchMemory:
        side = self._crop.at(epoch).image_size
        return BatchMemory((self._pipeline.batch_size, 3, side, side), pinned=self._options.pin_memory)

    def _shares(self, epoch: int, first_step: int) -> Int64Array:
        """Return what this rank reads at each step from the first one on: int64 (S, B)."""
        steps = range(first_step, self.order.num_steps)
        return self.order.rank_slices(
            self.order.epoch_indices(epoch), steps, self._options.rank, self._options.world_size
        )

    def _next_batch(self, index_B: Int64Array, num_global_rows: int, reading: EpochReader) -> Batch:
        """Make a batch of what the thread reads for this share."""
        num_rows = int((index_B >= 0).sum())
        read_B = index_B[:num_rows]
        targets_B = torch.zeros(len(index_B), dtype=torch.int64)
        targets_B[:num_rows] = torch.from_numpy(self.manifest.targets[read_B])
        if num_rows == 0:  # this rank's share of the last batch is padding alone
            images_B3SS, errors = self._memory.take().zero_(), {}
        else:
            found = next(reading)
            if not np.array_equal(found.index, read_B):
                raise LoaderError(f"FFCV read samples {found.index.tolist()} where {read_B.tolist()} were due")
            images_B3SS, errors = found.images, self._boxes.errors(read_B, found.codes)
            images_B3SS[num_rows:] = 0
        if errors and self._options.on_error == "raise":
            raise errors[min(errors)]
        is_full = num_rows == len(index_B)
        batch = Batch(images_B3SS, targets_B, torch.from_numpy(index_B), num_global_rows, is_full=is_full).skip_rows(
            errors
        )
        return batch.pin_memory() if self._options.pin_memory else batch
