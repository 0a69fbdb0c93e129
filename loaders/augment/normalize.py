"""Normalisation of a batch's pixels on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Bytes to standardised numbers: x / 255 less the mean, over the standard deviation, in one multiply-add.

    The constants are buffers, so `.to(device)` moves them; they are not saved with a model's weights.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, dtype: torch.dtype = torch.float32) -> None:
        """Prepare the constants.

        Args:
            mean: Three channel means, in units of full intensity.
            std: Three channel standard deviations, in the same units, above 0.
            dtype: Type of the result; the arithmetic is in float32 at least.

        Raises:
            ValueError: For other than three finite numbers each, or a deviation that is not above 0.
        """
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} is {tuple(values)}; it must be three finite numbers, for red, green and blue")
        if min(std) <= 0:
            raise ValueError(f"std is {tuple(std)}; each deviation must be above 0")
        self.dtype = dtype
        self._rows: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}
        constants = torch.tensor([mean, std], dtype=torch.float64)
        arithmetic = torch.promote_types(dtype, torch.float32)
        self.register_buffer("scale", (1 / (255 * constants[1])).to(arithmetic).view(3, 1, 1), persistent=False)
        self.register_buffer("offset", (-constants[0] / constants[1]).to(arithmetic).view(3, 1, 1), persistent=False)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Turn uint8 (B, 3, H, W) into `dtype` (B, 3, H, W), in the same memory format."""
        if images_B3HW.device.type == "cpu":
            return self._convert_then_scale(images_B3HW).to(self.dtype)
        # One kernel that reads the bytes themselves: a cast of its own would write and read a float copy of the batch.
        return torch.addcmul(self.offset, images_B3HW, self.scale).to(self.dtype)

    def _convert_then_scale(self, images_B3HW: Tensor) -> Tensor:
        """Convert, then multiply and add in place: each is one vectorised loop, where mixed types are read one by one.

        Channels-last images are scaled as rows of 3·W numbers, since a loop over three channels is too short for vectors. The
        result has the bits of the one kernel.
        """
        values_B3HW = images_B3HW.to(self.scale.dtype, copy=True)
        if not values_B3HW.is_contiguous(memory_format=torch.channels_last):
            return torch.addcmul(self.offset, values_B3HW, self.scale, out=values_B3HW)
        scale, offset = self._constants_of_rows(values_B3HW.shape[-1])
        rows = values_B3HW.permute(0, 2, 3, 1).view(-1, len(scale))
        torch.addcmul(offset, rows, scale, out=rows)
        return values_B3HW

    def _constants_of_rows(self, width: int) -> tuple[Tensor, Tensor]:
        """Scale and offset of a row of channels-last pixels, (3·W,) each, kept: images come in few widths."""
        key = width, self.scale.dtype
        if key not in self._rows:
            self._rows[key] = self.scale.view(3).repeat(width), self.offset.view(3).repeat(width)
        return self._rows[key]
