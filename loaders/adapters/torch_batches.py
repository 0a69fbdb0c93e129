"""Batches made in a worker of the torch loader: each image is decoded, cropped and resized while it is in the cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from rlpheads.loaders.adapters.torch_transforms import ImageTransform
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.contract.request import Request
from rlpheads.loaders.decoding.image_headers import image_size
from rlpheads.loaders.sources.datasets import EncodedSource, ImageSource

_OPENED_AT_ONCE = 256
"""Files that a worker holds the bytes of: enough to share the cost of placing crops, few enough for its memory."""


class _Opened(NamedTuple):
    """An image whose size is known: the bytes of its file, or its pixels where only those tell the size."""

    content: bytes | Tensor
    size: tuple[int, int]


class CurrentImages:
    """Which image each worker is reading, in memory shared with the parent, so that a worker's death can be explained.

    Args:
        num_workers: loader workers; 0 where there are none.
    """

    _NONE = -1

    def __init__(self, num_workers: int):
        self._pid_and_index = torch.full((max(1, num_workers), 2), self._NONE, dtype=torch.int64).share_memory_()

    def set(self, index: int) -> None:
        """Record, in a worker, which image is being read; -1 for none."""
        worker = get_worker_info()
        if worker is not None:
            self._pid_and_index.numpy()[worker.id] = os.getpid(), index

    def of_dead_worker(self, report: str) -> int | None:
        """Return the image that a dead worker was reading; `report` is torch's message, which names process ids."""
        pids = {
            int(pid) for listed in re.findall(r"pid(?:\(s\))? ([\d, ]+)", report) for pid in re.findall(r"\d+", listed)
        }
        found = (index for pid, index in self._pid_and_index.tolist() if pid in pids and index != self._NONE)
        return next(found, None)


@dataclass
class BatchMaker(Dataset[Batch | ImageReadError]):
    """Makes batches; it holds no position and no generator.

    Attributes:
        source: The images.
        transform: Makes the square of an image.
        skip: Leave out what cannot be read.
        current_images: Where workers record which image they read.
    """

    source: ImageSource
    transform: ImageTransform
    skip: bool
    current_images: CurrentImages

    def __getitem__(self, request: Request) -> Batch | ImageReadError:
        """Make a batch. An image's error is returned: torch would raise it with a worker's traceback as its message."""
        try:
            return self._make_batch(request)
        except ImageReadError as error:
            return error
        finally:
            self.current_images.set(-1)

    def _make_batch(self, request: Request) -> Batch:
        index_B, transform = request.index_B, self.transform.at(request.epoch)
        rows = np.flatnonzero(index_B >= 0)
        batch = Batch(
            images=_blank_images(len(index_B), transform.image_size),
            targets=_shared(torch.zeros(len(index_B), dtype=torch.int64)),
            index=_shared(torch.from_numpy(index_B.copy())),
            num_global_rows=request.num_global_rows,
            is_full=len(rows) == len(index_B),
        )
        batch.targets[rows] = torch.from_numpy(self.source.manifest.targets[index_B[rows]])
        errors: dict[int, ImageReadError] = {}
        for start in range(0, len(rows), _OPENED_AT_ONCE):
            self._fill(batch.images, rows[start : start + _OPENED_AT_ONCE].tolist(), request, errors)
        return batch.skip_rows(errors)

    def _fill(self, images: Tensor, rows: list[int], request: Request, errors: dict[int, ImageReadError]) -> None:
        """Open the images of some rows, draw their crops together, then decode, crop and resize them one by one.

        One by one, an image is still in the processor's cache when it is cropped; and only one is held at full size.
        """
        opened: dict[int, _Opened] = {}
        for row in rows:
            index = int(request.index_B[row])
            with self._reading(row, index, errors):
                opened[row] = self._open(index)
        if not opened:
            return
        sizes_B2 = np.array([image.size for image in opened.values()], dtype=np.int64)
        transform = self.transform.at(request.epoch)
        cuts = transform.place(request.draws_UB[:, list(opened)], sizes_B2)
        for (row, image), cut in zip(opened.items(), cuts, strict=True):
            index = int(request.index_B[row])
            with self._reading(row, index, errors):
                images[row] = transform.make(self._decode(index, image), cut)

    @contextmanager
    def _reading(self, row: int, index: int, errors: dict[int, ImageReadError]) -> Iterator[None]:
        """Record which image is being read; an error goes to `errors`, or is raised."""
        self.current_images.set(index)
        try:
            yield
        except ImageReadError as error:
            if not self.skip:
                raise
            errors[row] = error

    def _open(self, index: int) -> _Opened:
        data = self.source.encoded(index) if isinstance(self.source, EncodedSource) else None
        size = None if data is None else image_size(data)
        if data is not None and size is not None and min(size) > 0:
            return _Opened(data, size)
        pixels = self.source.read(index)
        return _Opened(pixels, (pixels.shape[1], pixels.shape[2]))

    def _decode(self, index: int, image: _Opened) -> Tensor:
        if isinstance(image.content, Tensor):
            return image.content
        assert isinstance(self.source, EncodedSource)
        pixels = self.source.decode(index, image.content)
        if tuple(pixels.shape[1:]) != image.size:
            reason = f"its header says {image.size[0]} x {image.size[1]} pixels, but it has {tuple(pixels.shape[1:])}"
            raise ImageReadError(index, str(self.source.manifest.path(index)), reason)
        return pixels


def _shared(column: Tensor) -> Tensor:
    """Return a column of a batch, in a worker in memory that its parent shares.

    Torch would move it there later, in a thread whose errors nobody hears: the parent would wait for the batch for ever.
    """
    return column if get_worker_info() is None else column.share_memory_()


def _blank_images(num_rows: int, side: int) -> Tensor:
    """Return black images, uint8 (B, 3, S, S) in channels-last order: in a worker in memory that its parent shares.

    Filled in there, a batch is not copied on its way to the parent.
    """
    if get_worker_info() is None:
        return torch.zeros((num_rows, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    storage = torch.UntypedStorage._new_shared(num_rows * side * side * 3)  # zeros: a fresh file of the kernel's
    flat = torch.empty(0, dtype=torch.uint8).set_(storage)
    return flat.view(num_rows, side, side, 3).permute(0, 3, 1, 2)
