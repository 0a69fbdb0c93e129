"""Augmentations by a box of each image: padded crop, cutout, random erasing.

Batched, with numbers of its own for each image, keyed by (seed, epoch, index); nothing is read on the host.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from rlpheads.loaders.augment.operations import affine_matrices
from rlpheads.loaders.augment.pixel_plan import PixelKind, PixelStep
from rlpheads.loaders.augment.spec import EraseSpec
from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.keyed_random import KeyedStream, uniforms

NUM_ERASE_TRIES = 10
"""Boxes that random erasing tries until one fits, as torchvision and timm do."""


class PadCrop:
    """Pad by some pixels of black on every side and cut the image's size out anywhere: CIFAR's usual augmentation.

    Args:
        padding: pixels, at least 1.
        seed: key of the run.
    """

    def __init__(self, padding: int, seed: int) -> None:
        self.padding = padding
        self.seed = seed

    def plan(self, index_B: Int64Array, epoch: int, size: tuple[int, int]) -> list[PixelStep]:
        """See `PixelPlanner`: a shift, for which every interpolation is exact."""
        draws_B2 = uniforms(self.seed, epoch, index_B, 2, stream="pad crop")
        top_B, left_B = np.floor(draws_B2 * (2 * self.padding + 1)).T
        zeros_B = np.zeros(len(index_B))
        shift = (self.padding - left_B, self.padding - top_B)
        matrix_B6 = affine_matrices((zeros_B, zeros_B), shift, zeros_B, size).astype(np.float32)
        return [PixelStep(np.full(len(index_B), PixelKind.WARP, dtype=np.int32), matrix_B6)]


class Cutout(nn.Module):
    """Cover a square with the mean colour (DeVries & Taylor, 2017, arXiv:1708.04552).

    Its centre is any pixel of the image, so it may hang over the edge.

    Args:
        side: of the square, in pixels.
        seed: key of the run.
    """

    def __init__(self, side: int, seed: int) -> None:
        super().__init__()
        self.side = side
        self.stream = KeyedStream(seed, "cutout")

    def forward(self, images_B3HW: Tensor, index_B: Tensor, epoch: int | Tensor) -> Tensor:
        """Cover a square of normalised (B, 3, H, W) images with zeros."""
        size = images_B3HW.shape[-2:]
        draws_B2 = self.stream.uniforms(epoch, index_B, num_draws=2)
        start_B2 = _scale_by_size(draws_B2, size).to(torch.int64) - self.side // 2
        covered_B1HW = box_mask(start_B2, torch.full_like(start_B2, self.side), size)
        return images_B3HW * ~covered_B1HW


class RandomErasing(nn.Module):
    """Cover a box of random area and ratio (Zhong et al., 2017, arXiv:1708.04896), as torchvision and timm draw it.

    Args:
        spec: probability, ranges and what covers the box.
        seed: key of the run.
    """

    def __init__(self, spec: EraseSpec, seed: int) -> None:
        super().__init__()
        self.spec = spec
        self.boxes = KeyedStream(seed, "erase")
        self.fill = KeyedStream(seed, "erase fill")

    def forward(self, images_B3HW: Tensor, index_B: Tensor, epoch: int | Tensor) -> Tensor:
        """Cover a box of normalised (B, 3, H, W) images, of those that are chosen."""
        size = images_B3HW.shape[-2:]
        draws_BU = self.boxes.uniforms(epoch, index_B, num_draws=3 + 2 * NUM_ERASE_TRIES)
        sides_B2, fits_B = self._box_sizes(draws_BU[:, 3:].unflatten(1, (NUM_ERASE_TRIES, 2)), size)
        chosen_B = fits_B & (draws_BU[:, 0] < self.spec.probability)
        room_B2 = _scale_by_size(torch.ones_like(sides_B2), size) - sides_B2
        start_B2 = (draws_BU[:, 1:3] * (room_B2 + 1)).to(torch.int64)
        covered_B1HW = box_mask(start_B2, sides_B2, size) & chosen_B[:, None, None, None]
        filling = self._fill_values(images_B3HW, index_B, epoch)
        # Exact at weights 0 and 1, and on a CPU many times as fast as `torch.where`.
        return torch.lerp(images_B3HW, filling.expand_as(images_B3HW), covered_B1HW.to(images_B3HW.dtype))

    def _box_sizes(self, draws_BT2: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Return the height and width of the first box of each image that fits, int64 (B, 2), and whether any does."""
        (least, most), ratio = self.spec.area, self.spec.ratio
        area_BT = (least + draws_BT2[..., 0] * (most - least)) * (size[0] * size[1])
        log_least, log_most = math.log(ratio[0]), math.log(ratio[1])
        ratio_BT = torch.exp(log_least + draws_BT2[..., 1] * (log_most - log_least))
        sides_BT2 = torch.stack([area_BT * ratio_BT, area_BT / ratio_BT], dim=-1).sqrt().round().to(torch.int64)
        fits_BT = (sides_BT2[..., 0] < size[0]) & (sides_BT2[..., 1] < size[1])
        first_B = fits_BT.to(torch.uint8).argmax(1)
        sides_B2 = sides_BT2.take_along_dim(first_B[:, None, None], dim=1).squeeze(1)
        fits_B = fits_BT.any(1)
        return torch.where(fits_B[:, None], sides_B2, 0), fits_B

    def _fill_values(self, images_B3HW: Tensor, index_B: Tensor, epoch: int | Tensor) -> Tensor:
        """Return what covers a box, in units of the normalised pixels."""
        num_rows, num_channels, height, width = images_B3HW.shape
        if self.spec.fill == "mean":
            return images_B3HW.new_zeros(())
        pixels = height * width if self.spec.fill == "noise" else 1
        noise_BU = self.fill.normals(epoch, index_B, num_draws=num_channels * pixels).to(images_B3HW.dtype)
        return noise_BU.view(num_rows, num_channels, *((height, width) if pixels > 1 else (1, 1)))


def box_mask(start_B2: Tensor, sides_B2: Tensor, size: torch.Size) -> Tensor:
    """Return which pixels lie in a box of each image: bool (B, 1, H, W).

    Args:
        start_B2: int64 (top, left) in pixels; may lie outside.
        sides_B2: int64 (height, width).
        size: H and W of the images.
    """
    inside = []
    for axis, length in enumerate(size):
        from_start_BL = torch.arange(length, device=start_B2.device) - start_B2[:, axis, None]
        inside.append((from_start_BL >= 0) & (from_start_BL < sides_B2[:, axis, None]))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def _scale_by_size(pairs_B2: Tensor, size: torch.Size) -> Tensor:
    """Multiply pairs by (H, W), without a constant tensor that would have to be copied to the device."""
    return torch.stack([pairs_B2[:, axis] * size[axis] for axis in (0, 1)], dim=1)
