"""Crop boxes for FFCV's decoder: each row's place in the store, and its box."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rlpheads.loaders.adapters.ffcv_kernels import BOX
from rlpheads.loaders.contract.arrays import FloatArray, Int64Array
from rlpheads.loaders.contract.crops import DRAWN_AT_ONCE, CropSpec, central_boxes, keyed_crops
from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.loaders.sources.stored_rows import find_stored_rows


class CropBoxes:
    """Place in the store and crop box of every sample.

    Attributes:
        store: The split's file.
        rows_N: int64 (N,), position in it of each sample.
    """

    def __init__(self, source: ImageSource, seed: int, crop: CropSpec, *, train: bool) -> None:
        """Find the store behind a source.

        Args:
            source: A store, or a part of one, perhaps with canaries.
            seed: Key of the crops and flips.
            crop: How an image becomes a square.
            train: Random crops and flips, or the central crop of evaluation.

        Raises:
            DatasetError: If there is none.
        """
        found = find_stored_rows(source)
        self.store, self.rows_N, self._darker_N = found.store, found.rows_N, found.darker_N
        images = self.store.samples["f0"]
        self._sizes_N2 = np.stack([images["height"], images["width"]], axis=1)
        self._unreadable = source.manifest.unreadable
        self._unreadable_index = np.fromiter(self._unreadable, dtype=np.int64)
        self._seed, self._crop, self._train = seed, crop, train

    def batches(
        self, epoch: int, index_N: Int64Array, keys_N: Int64Array, batch_size: int
    ) -> Iterator[NDArray[np.void]]:
        """Yield the boxes of batch after batch of an epoch's samples: `ffcv_kernels.BOX` (B,), the last one shorter.

        The store tells the images' sizes, so that some thousand samples share the cost of drawing. `keys_N` key the draws
        (`Order.draw_keys`).
        """
        at_once = max(1, DRAWN_AT_ONCE // batch_size) * batch_size
        for start in range(0, len(index_N), at_once):
            part = slice(start, start + at_once)
            boxes_D = self.draw(epoch, index_N[part], keys_N[part])
            yield from (boxes_D[place : place + batch_size] for place in range(0, len(boxes_D), batch_size))

    def draw(self, epoch: int, index_B: Int64Array, keys_B: Int64Array) -> NDArray[np.void]:
        """Return the boxes of samples in an epoch: `ffcv_kernels.BOX` (B,)."""
        rows_B = self.rows_N[index_B]
        sizes_B2 = self._sizes_N2[rows_B].astype(np.int64)
        boxes_B = np.zeros(len(index_B), dtype=BOX)
        box_B4: FloatArray | Int64Array
        if self._train:
            box_B4, boxes_B["flip"] = keyed_crops(self._crop, self._seed, epoch, keys_B, sizes_B2)
            bounds_B4 = np.concatenate([box_B4[:, :2], box_B4[:, :2] + box_B4[:, 2:]], axis=1)
        else:
            box_B4, bounds_B4 = central_boxes(self._crop, sizes_B2)
        for column, name in enumerate(("top", "left", "height", "width")):
            boxes_B[name] = box_B4[:, column]
        for column, name in enumerate(("first_row", "first_column", "end_row", "end_column")):
            boxes_B[name] = bounds_B4[:, column]
        boxes_B["cubic"] = self._crop.interpolation == "bicubic"
        boxes_B["darken"] = self._darker_N[index_B]
        boxes_B["skip"] = np.isin(index_B, self._unreadable_index)
        return boxes_B

    def errors(self, index_B: Int64Array, codes_B: NDArray[np.int32]) -> dict[int, ImageReadError]:
        """Return why rows could not be read, by row."""
        errors = {}
        for row in np.flatnonzero((codes_B != 0) | np.isin(index_B, self._unreadable_index)).tolist():
            index = int(index_B[row])
            reason = self._unreadable.get(index, "its JPEG data in the store are damaged")
            errors[row] = ImageReadError(index, self.store.error(int(self.rows_N[index]), reason).path, reason)
        return errors
