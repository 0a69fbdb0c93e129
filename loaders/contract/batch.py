"""A batch: the images of one rank at one step, with their classes and canonical indices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.contract.order import PADDING


@dataclass(frozen=True)
class Partners:
    """The second sample of every row whose image was mixed with its neighbour's.

    Attributes:
        targets: int64 (B,).
        index: int64 (B,), canonical index; -1 beside padding, with weight 1.
        weight: float32 (B,), weight of the row's own sample, in [0.5, 1]; 1 where nothing was mixed.
    """

    targets: Tensor
    index: Tensor
    weight: Tensor

    def chunks(self, num_chunks: int) -> list[Partners]:
        """Cut like the batch."""
        columns = (column.chunk(num_chunks) for column in (self.targets, self.index, self.weight))
        return [Partners(*parts) for parts in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        images: (B, 3, H, W), red, green, blue: uint8 as loaded; float, normalised, augmented and mixed, once prepared for
            the model.
        targets: int64 (B,), position of the class in `Manifest.classes`.
        index: int64 (B,), canonical index; -1 marks a padding row (black image, target 0) that counts nowhere.
        num_global_rows: Rows of the whole global batch, over all ranks, that the order scheduled: all that are not there
            to fill it up. Skipped rows count among them, so that this number needs no word from other ranks: a mean over
            the batch gives every readable row the same weight at any world size, and a skipped one the loss 0.
        skipped: Why rows of this rank could not be read, one error for each, naming index and path; only under
            `LoaderOptions.on_error` "skip". Such a row is a padding row where its image would have stood.
        partners: What the images were mixed with, on the device; None: nothing.
        is_first: bool (B,), on the device: rows that are no repeats of rows before them in the global batch; None: all.
        host_index: `index` on the host, where the tensor lies on another device; None: the tensor lies on the host, or
            nobody knows its values there.
        is_full: Whoever made the batch knows that no row is padding; False: there may be some.
    """

    images: Tensor
    targets: Tensor
    index: Tensor
    num_global_rows: int
    skipped: tuple[ImageReadError, ...] = ()
    partners: Partners | None = None
    host_index: Int64Array | None = None
    is_first: Tensor | None = None
    is_full: bool = False

    def __len__(self) -> int:
        """Return the rows of this rank, padding included."""
        return len(self.index)

    @property
    def index_on_host(self) -> Int64Array:
        """The canonical indices, read without waiting for a device: int64 (B,).

        Raises:
            ValueError: They lie on a device alone.
        """
        if self.host_index is not None:
            return self.host_index
        if self.index.device.type != "cpu":
            raise ValueError(f"the indices lie on {self.index.device} alone; give the batch its host_index")
        return np.asarray(self.index)

    @property
    def may_have_padding(self) -> bool:
        """Whether a row may be padding: False where the host knows that none is, so that none need be masked."""
        return not self.is_full and self._shows_padding

    @cached_property
    def _shows_padding(self) -> bool:
        is_known = self.host_index is not None or self.index.device.type == "cpu"
        return not is_known or PADDING in self.index_on_host

    @property
    def skipped_index(self) -> Tensor:
        """Canonical indices of this rank's skipped rows: int64 (S,), on the host."""
        return torch.tensor([error.index for error in self.skipped], dtype=torch.int64)

    def skip_rows(self, errors: Mapping[int, ImageReadError]) -> Batch:
        """Turn rows (by their position in the batch) that could not be read into padding: in place, nothing is copied."""
        for row in errors:
            self.images[row] = 0
            self.targets[row] = 0
            self.index[row] = PADDING
        return replace(self, skipped=self.skipped + tuple(errors.values()), is_full=self.is_full and not errors)

    def with_images(self, images_B3HW: Tensor) -> Batch:
        """Return the batch with other images of the same rows, such as its own once they are normalised."""
        return Batch(  # `replace` looks at the class anew, which a step of a small network notices
            images_B3HW,
            self.targets,
            self.index,
            self.num_global_rows,
            self.skipped,
            self.partners,
            self.host_index,
            self.is_first,
            self.is_full,
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Copy to a device; without waiting, if `non_blocking` and the batch is pinned."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            targets=self.targets.to(device, non_blocking=non_blocking),
            index=self.index.to(device, non_blocking=non_blocking),
            host_index=self.index_on_host if self.index.device.type == "cpu" else self.host_index,
        )

    def pin_memory(self) -> Batch:
        """Copy into page-locked memory, from which a copy to a GPU need not wait."""
        return replace(
            self,
            images=self.images.pin_memory(),
            targets=self.targets.pin_memory(),
            index=self.index.pin_memory(),
        )

    def chunks(self, num_chunks: int) -> list[Batch]:
        """Cut into equal micro-batches, as views in order; `num_global_rows` stays that of the global batch.

        The first holds all of `skipped`.

        Raises:
            ValueError: If the rows cannot be cut into that many equal parts.
        """
        if num_chunks < 1 or len(self) % num_chunks:
            allowed = [parts for parts in range(1, len(self) + 1) if len(self) % parts == 0]
            nearest = min(allowed, key=lambda parts: abs(parts - num_chunks))
            raise ValueError(
                f"{len(self)} rows cannot be cut into {num_chunks} equal micro-batches; the nearest is {nearest}"
            )
        if num_chunks == 1:
            return [self]
        columns = (self.images.chunk(num_chunks), self.targets.chunk(num_chunks), self.index.chunk(num_chunks))
        partners = self.partners.chunks(num_chunks) if self.partners else [None] * num_chunks
        first = [None] * num_chunks if self.is_first is None else self.is_first.chunk(num_chunks)
        host = [None] * num_chunks if self.host_index is None else np.split(self.host_index, num_chunks)
        return [
            replace(
                self,
                images=images,
                targets=targets,
                index=index,
                skipped=() if position else self.skipped,
                partners=partners[position],
                host_index=host[position],
                is_first=first[position],
            )
            for position, (images, targets, index) in enumerate(zip(*columns, strict=True))
        ]
