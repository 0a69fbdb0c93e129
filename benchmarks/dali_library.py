"""DALI as its own documentation uses it: the loops that the adapter in loaders/adapters/dali_loader.py is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia import dali
from nvidia.dali import fn
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIClassificationIterator, DALIGenericIterator
from PIL import Image

from rlpheads.loaders.contract.crops import CropSpec, keyed_crops


def dali_reader_loader(split: Path, batch_size: int, num_threads: int, image_size: int) -> DALIClassificationIterator:
    """Return DALI's own training loader of SPLIT/CLASS/FILE: its reader, its shuffling, its random crops and flips.

    Iterate over it once an epoch, then `reset()`. Batches are [{"data": uint8 (B, S, S, 3), "label": (B, 1)}].

    Args:
        split: folder of the class folders.
        batch_size: rows of a batch; the last, partial one is left out.
        num_threads: threads that decode.
        image_size: side of the squares in pixels.
    """

    @dali.pipeline_def(batch_size=batch_size, num_threads=num_threads, device_id=None, seed=1)
    def pipeline() -> tuple[Any, ...]:
        files, labels = fn.readers.file(file_root=str(split), random_shuffle=True, name="files")
        images = fn.decoders.image_random_crop(files, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
        images = fn.resize(images, size=[image_size, image_size], antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    return DALIClassificationIterator([pipeline()], reader_name="files", last_batch_policy=LastBatchPolicy.DROP)


def dali_external_source_loader(split: Path, batch_size: int, num_threads: int, image_size: int) -> DALIGenericIterator:
    """Return a training loader of SPLIT/CLASS/FILE on a batch callable that reads files and draws crops and flips.

    Used and yielding as above. The crops are the adapter's own, so that both decode the same; the sizes of the images,
    which the adapter reads off each file, are known beforehand here.
    """
    paths = sorted(split.glob("*/*"))
    source = _Source(paths, np.array([Image.open(path).size[::-1] for path in paths]), batch_size, image_size)

    @dali.pipeline_def(batch_size=batch_size, num_threads=num_threads, device_id=None)
    def pipeline() -> tuple[Any, ...]:
        encoded, starts, shapes, flips, labels = fn.external_source(source, num_outputs=5, batch=True)
        images = fn.decoders.image_slice(encoded, start=starts, shape=shapes, axes=[0, 1])
        images = fn.resize(images, size=[image_size, image_size], antialias=True)
        return fn.flip(images, horizontal=flips), labels

    return DALIGenericIterator([pipeline()], ["data", "label"])


@dataclass
class _Source:
    """The batch callable."""

    paths: list[Path]
    sizes_N2: NDArray[np.int64]
    batch_size: int
    image_size: int
    _epoch: int = -1

    def __call__(self, step: int) -> tuple[Any, ...]:
        """Return the inputs of a step of the epoch."""
        if step == 0:
            self._epoch += 1
            self._order = np.random.default_rng(self._epoch).permutation(len(self.paths))
        if (step + 1) * self.batch_size > len(self.paths):
            raise StopIteration
        chosen = self._order[step * self.batch_size : (step + 1) * self.batch_size]
        boxes_B4, flips = keyed_crops(CropSpec(self.image_size), 1, self._epoch, chosen, self.sizes_N2[chosen])
        starts, shapes = (np.ascontiguousarray(part, dtype=np.int32) for part in np.split(boxes_B4, 2, axis=1))
        return (
            [np.fromfile(self.paths[index], dtype=np.uint8) for index in chosen],
            starts,
            shapes,
            flips.astype(np.int32),
            chosen,
        )
