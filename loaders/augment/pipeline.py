"""Augmentation of training batches on the device: from the loader's bytes to normalised images, alike for every loader."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlpheads.loaders.augment.boxes import Cutout, PadCrop, RandomErasing
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.augment.pixel_plan import PixelPlanner, PixelRunner, run_sorted
from rlpheads.loaders.augment.policies import ColorJitter, make_policy
from rlpheads.loaders.augment.spec import AugmentSpec
from rlpheads.loaders.contract.arrays import Int64Array


class Augment(nn.Module):
    """Augment and normalise; every draw is keyed by (seed, epoch, canonical index) and a stream's name.

    World size, workers, loader and place of resume change no draw, and no augmentation shifts another's. What is done to
    the bytes is planned on the host, where the indices are known, for all of them at once.

    Args:
        spec: the augmentations.
        normalize: bytes to standardised numbers.
        seed: key of the run.
        on_cpu: does the plan to images on a CPU (`rlpheads.kernels.pixels.pixel_native`); None: PyTorch's operations do, as
            on every other device.
    """

    def __init__(self, spec: AugmentSpec, normalize: Normalize, seed: int, on_cpu: PixelRunner | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.on_cpu = on_cpu
        self.on_bytes: list[PixelPlanner] = []
        if spec.padding:
            self.on_bytes.append(PadCrop(spec.padding, seed))
        if spec.policy.name != "none":
            self.on_bytes.append(make_policy(spec.policy, seed))
        if any(spec.color_jitter):
            self.on_bytes.append(ColorJitter(spec.color_jitter, seed))
        self.normalize = normalize
        self.on_numbers = nn.ModuleList()
        if spec.cutout:
            self.on_numbers.append(Cutout(spec.cutout, seed))
        if spec.erase.probability:
            self.on_numbers.append(RandomErasing(spec.erase, seed))

    def forward(
        self, images_B3HW: Tensor, index_B: Tensor, epoch: int, host_index_B: Int64Array | None = None
    ) -> Tensor:
        """Turn uint8 (B, 3, H, W) images with canonical indices (B,) into the model's input (B, 3, H, W).

        Padding rows (index -1) are treated like any other. The memory format stays, and so do the images given.

        Args:
            images_B3HW: uint8.
            index_B: on the images' device.
            epoch: epoch, from 0.
            host_index_B: the same indices on the host; None: `index_B` lies there.

        Raises:
            ValueError: no indices lie on the host, and bytes are augmented.
        """
        changed_B3HW = images_B3HW
        if self.on_bytes:
            on_host = read_on_host(index_B) if host_index_B is None else host_index_B
            kinds_SB, values_SB6 = self.plan(on_host, epoch, images_B3HW.shape[-2:])
            run = self.on_cpu if self.on_cpu is not None and images_B3HW.device.type == "cpu" else run_sorted
            changed_B3HW = run(images_B3HW, kinds_SB, values_SB6, self.spec.interpolation)
        return self.finish(changed_B3HW, index_B, epoch, memory_format_of(images_B3HW))

    def plan(
        self, index_B: Int64Array, epoch: int, size: tuple[int, int] | torch.Size
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return what is done to the bytes of images of (H, W) pixels: kinds (S, B) and their numbers (S, B, 6)."""
        height, width = size
        steps = [step for planner in self.on_bytes for step in planner.plan(index_B, epoch, (height, width))]
        kinds_SB, values_SB6 = (np.stack(column) for column in zip(*steps, strict=True))
        return kinds_SB, values_SB6

    def finish(
        self, images_B3HW: Tensor, index_B: Tensor, epoch: int | Tensor, memory_format: torch.memory_format
    ) -> Tensor:
        """Normalise bytes and do what is done to numbers."""
        if not self.on_numbers:
            return cast("Tensor", self.normalize(images_B3HW)).contiguous(memory_format=memory_format)
        num_rows = max(1, _values_at_once(images_B3HW.device) // images_B3HW[0].numel())
        parts = zip(images_B3HW.split(num_rows), index_B.split(num_rows), strict=True)
        return torch.cat([self._finish_rows(*part, epoch) for part in parts]).contiguous(memory_format=memory_format)

    def _finish_rows(self, images_B3HW: Tensor, index_B: Tensor, epoch: int | Tensor) -> Tensor:
        images_B3HW = cast("Tensor", self.normalize(images_B3HW))
        for operation in self.on_numbers:
            images_B3HW = operation(images_B3HW, index_B, epoch)
        return images_B3HW


def read_on_host(index_B: Tensor) -> Int64Array:
    """Return indices that lie on the host; ValueError for others."""
    if index_B.device.type != "cpu":
        raise ValueError(
            f"the indices lie on {index_B.device}; what is done to the bytes is planned on the host: give host_index_B, "
            "such as Batch.index_on_host"
        )
    return np.asarray(index_B)


def memory_format_of(images_B3HW: Tensor) -> torch.memory_format:
    """Return whether images lie channels-last or contiguous."""
    in_channels_last = images_B3HW.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if in_channels_last else torch.contiguous_format


def _values_at_once(device: torch.device) -> int:
    """Return how many bytes of images are covered at once: what fits a CPU's cache, or bounds a GPU's memory."""
    return 2**18 if device.type == "cpu" else 2**24
