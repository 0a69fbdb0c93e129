"""A plan in groups of fixed sizes, and augmentation that is one graph for all batches (`torch.compile`).

How many images of a batch get which operation changes from batch to batch; a graph's shapes must not. So each operation of
each step has a group of one size, which nearly every batch fits: what is left of it works on a spare row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlpheads.loaders.augment.pipeline import Augment, memory_format_of, read_on_host
from rlpheads.loaders.augment.pixel_plan import NUM_VALUES, PixelKind, apply_kind, upload
from rlpheads.loaders.augment.spec import Interpolation
from rlpheads.loaders.contract.arrays import Int64Array

_SAMPLED = 4096
"""Indices whose plans tell how often each operation is drawn."""
_DEVIATIONS = 4
"""Standard deviations above its mean that a group holds: one in 30,000 is larger."""


class FixedGroups:
    """Where the rows of each operation stand: step after step, groups of fixed sizes one behind the other.

    Args:
        kinds_SN: the PixelKinds of S steps for N images, which tell how large groups become.
        num_rows: B, images of a batch.

    Attributes:
        steps: of each step the groups: kind, and where it begins and ends among the step's G places.
        num_places: G.
    """

    def __init__(self, kinds_SN: NDArray[np.int32], num_rows: int) -> None:
        self.num_rows = num_rows
        self.steps: list[list[tuple[PixelKind, int, int]]] = []
        for kinds_N in kinds_SN:
            share_K = np.bincount(kinds_N, minlength=len(PixelKind)) / len(kinds_N)
            deviation_K = np.sqrt(num_rows * share_K * (1 - share_K))
            size_K = np.minimum(np.ceil(num_rows * share_K + _DEVIATIONS * deviation_K), num_rows).astype(int)
            groups, start = [], 0
            for kind in tuple(PixelKind)[1:]:
                if size := int(size_K[kind]):
                    groups.append((kind, start, start + size))
                    start += size
            self.steps.append(groups)
        self.num_places = max((groups[-1][2] for groups in self.steps if groups), default=0)

    def sort(
        self, kinds_SB: NDArray[np.int32], values_SB6: NDArray[np.float32]
    ) -> tuple[Int64Array, NDArray[np.float32]] | None:
        """Put a batch's rows into their groups.

        Returns:
            The row at each place, int64 (S, G), B where there is none; its numbers, float32 (S, G, 6). None: a group has no
            room for all of its rows.
        """
        rows_SG = np.full((len(self.steps), self.num_places), self.num_rows, dtype=np.int64)
        values_SG6 = np.zeros((*rows_SG.shape, NUM_VALUES), dtype=np.float32)
        for step, groups in enumerate(self.steps):
            num_placed = int((kinds_SB[step] == PixelKind.UNCHANGED).sum())
            for kind, start, end in groups:
                rows = np.flatnonzero(kinds_SB[step] == kind)[: end - start]
                rows_SG[step, start : start + len(rows)] = rows
                values_SG6[step, start : start + len(rows)] = values_SB6[step, rows]
                num_placed += len(rows)
            if num_placed < self.num_rows:
                return None
        return rows_SG, values_SG6

    def run(self, images_B3HW: Tensor, rows_SG: Tensor, values_SG6: Tensor, interpolation: Interpolation) -> Tensor:
        """Apply a sorted plan: uint8 (B, 3, H, W), contiguous; shapes do not depend on the plan."""
        images = torch.cat([images_B3HW, images_B3HW[:1]]).contiguous()
        for step, groups in enumerate(self.steps):
            for kind, start, end in groups:
                rows = rows_SG[step, start:end]
                changed = apply_kind(kind, images.index_select(0, rows), values_SG6[step, start:end], interpolation)
                images = images.index_copy(0, rows, changed)
        return images[:-1]


class CompiledAugment(nn.Module):
    """An `Augment` of which all that the device does is one graph, for batches of one size and any epoch.

    A batch that does not fit the groups goes through the operations themselves, with the same result.

    Args:
        augment: it lies on its device already.
        backend: of torch.compile.
    """

    def __init__(self, augment: Augment, backend: str | Callable[..., Any] = "inductor") -> None:
        super().__init__()
        self.augment = augment
        self._groups: dict[int, FixedGroups] = {}
        self._on_device = torch.compile(self._change, fullgraph=True, dynamic=False, backend=backend)

    def forward(
        self, images_B3HW: Tensor, index_B: Tensor, epoch: int, host_index_B: Int64Array | None = None
    ) -> Tensor:
        """See `Augment.forward`."""
        if not self.augment.on_bytes:
            return self._on_device(images_B3HW, index_B, self._upload(np.array(epoch), images_B3HW), None, None, None)
        on_host = read_on_host(index_B) if host_index_B is None else host_index_B
        groups = self._groups_of(len(images_B3HW))
        plan = groups.sort(*self.augment.plan(on_host, epoch, images_B3HW.shape[-2:]))
        if plan is None:
            return self.augment(images_B3HW, index_B, epoch, on_host)
        inputs = (self._upload(array, images_B3HW) for array in (np.array(epoch), *plan))
        epoch_now, rows_SG, values_SG6 = inputs
        return self._on_device(images_B3HW, index_B, epoch_now, groups, rows_SG, values_SG6)

    def _groups_of(self, num_rows: int) -> FixedGroups:
        if num_rows not in self._groups:
            kinds_SN, _ = self.augment.plan(np.arange(_SAMPLED), 0, (_SAMPLED, _SAMPLED))
            self._groups[num_rows] = FixedGroups(kinds_SN, num_rows)
        return self._groups[num_rows]

    @staticmethod
    def _upload(array: NDArray[np.generic], images: Tensor) -> Tensor:
        return upload(array, images.device)

    def _change(
        self,
        images_B3HW: Tensor,
        index_B: Tensor,
        epoch: Tensor,
        groups: FixedGroups | None,
        rows_SG: Tensor | None,
        values_SG6: Tensor | None,
    ) -> Tensor:
        memory_format = memory_format_of(images_B3HW)
        if groups is not None and rows_SG is not None and values_SG6 is not None:
            images_B3HW = groups.run(images_B3HW, rows_SG, values_SG6, self.augment.spec.interpolation)
        return self.augment.finish(images_B3HW, index_B, epoch, memory_format)
