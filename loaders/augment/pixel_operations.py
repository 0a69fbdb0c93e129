"""Operations on a batch of byte images with a strength of its own for each image.

What they do to one image is what torchvision's functions of the same names do (`torchvision.transforms.v2.functional`),
which take one strength for a whole batch. Nothing branches on a value, and nothing is read on the host. Bytes are chosen by
masks, since `torch.where` on a CPU takes as long as all the rest together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from rlpheads.loaders.augment.spec import Interpolation

MAX_BLUR = 2.0
"""Largest standard deviation of `gaussian_blur`, in pixels."""
_BLUR_TAPS = 6 * int(MAX_BLUR) + 1


def warp(images_B3HW: Tensor, matrix_B23: Tensor, interpolation: Interpolation = "nearest") -> Tensor:
    """Move pixels by an affine map; what comes from outside is black. Neutral: the identity.

    Between pixels as Pillow does, and so timm: linear, or cubic with a = −1; beyond the edge, for half a pixel, the last
    pixel is repeated (torchvision fades to black there).

    Args:
        images_B3HW: uint8.
        matrix_B23: where each pixel comes from: (x, y, 1) to (x, y), in pixels from the middle of the image.
        interpolation: the nearest pixel, or between the 4 or the 16 nearest.
    """
    size = images_B3HW.shape[-2:]
    column_BHW, line_BHW = _sources(matrix_B23.to(torch.float32), size)
    if interpolation == "nearest":
        column_BHW, line_BHW = torch.round(column_BHW), torch.round(line_BHW)
    inside_BHW = (column_BHW >= -0.5) & (column_BHW < size[1] - 0.5) & (line_BHW >= -0.5) & (line_BHW < size[0] - 0.5)
    if interpolation == "nearest":
        return _gather(images_B3HW, column_BHW, line_BHW) & as_mask(inside_BHW)[:, None]
    weigh = _linear_weights if interpolation == "bilinear" else _cubic_weights
    (left_BHW, across), (top_BHW, down) = (
        (place.floor(), weigh(place - place.floor())) for place in (column_BHW, line_BHW)
    )
    first = 1 - len(across) // 2
    total = torch.zeros(images_B3HW.shape, device=images_B3HW.device)
    for row, by_row in enumerate(down):
        for column, by_column in enumerate(across):
            values = _gather(images_B3HW, left_BHW + (first + column), top_BHW + (first + row))
            total.addcmul_(values.to(torch.float32), (by_row * by_column)[:, None])
    # Whole numbers stay, whichever way their sum is rounded.
    return to_bytes(total + 1e-3) & as_mask(inside_BHW)[:, None]


def _sources(matrix_B23: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Return the column and the line that each pixel comes from: float32 (B, H, W)."""
    height, width = size
    # Computed, not copied from the host: a constant tensor would have to cross to the device.
    x_W = torch.arange(width, device=matrix_B23.device) - (width - 1) / 2
    y_H1 = (torch.arange(height, device=matrix_B23.device) - (height - 1) / 2)[:, None]
    from_BHW = []
    for row, length in ((0, width), (1, height)):
        a_B11, b_B11, c_B11 = matrix_B23[:, row, :, None, None].unbind(1)
        from_BHW.append(a_B11 * x_W + b_B11 * y_H1 + (c_B11 + (length - 1) / 2))
    return from_BHW[0], from_BHW[1]


def _gather(images_B3HW: Tensor, column_BHW: Tensor, line_BHW: Tensor) -> Tensor:
    """Return the pixels at whole columns and lines, those beyond the edge being the edge's."""
    height, width = images_B3HW.shape[-2:]
    place_BHW = line_BHW.clamp(0, height - 1).to(torch.int64) * width + column_BHW.clamp(0, width - 1).to(torch.int64)
    place_B3P = place_BHW.flatten(1)[:, None].expand(-1, images_B3HW.shape[1], -1)
    return images_B3HW.flatten(2).gather(2, place_B3P).view(images_B3HW.shape)


def _linear_weights(part: Tensor) -> list[Tensor]:
    return [1 - part, part]


def _cubic_weights(part: Tensor) -> list[Tensor]:
    """Return the four weights of Keys' cubic with a = −1 at a part of a pixel behind the second."""
    squared = part * part
    cubed = squared * part
    return [-part + 2 * squared - cubed, 1 - 2 * squared + cubed, part + squared - cubed, cubed - squared]


def blend(images_B3HW: Tensor, others: Tensor, ratio_B: Tensor, rest_B: Tensor) -> Tensor:
    """Return ratio × image + rest × other, cut off to bytes. Neutral: ratio 1.

    With black this changes the brightness, with the mean of the grey image the contrast, with the grey image the
    saturation.

    Args:
        images_B3HW: uint8.
        others: numbers from 0 to 255 that broadcast to the images.
        ratio_B: at least 0; above 1 the image is moved away from the other.
        rest_B: 1 − ratio, which may have been rounded better than the difference of rounded numbers.
    """
    scaled = images_B3HW.to(torch.float32) * _per_image(ratio_B)
    return to_bytes(torch.addcmul(scaled, others.to(torch.float32), _per_image(rest_B)))


def grey(images_B3HW: Tensor) -> Tensor:
    """Return the luma of each pixel, cut off to a whole number: uint8 (B, 1, H, W)."""
    return rgb_to_grayscale(images_B3HW, num_output_channels=1)


def mean_of(grey_B1HW: Tensor) -> Tensor:
    """Return the mean of each image: float32 (B, 1, 1, 1)."""
    return grey_B1HW.to(torch.float32).mean((1, 2, 3), keepdim=True)


def sharpen(images_B3HW: Tensor, rest_B: Tensor) -> Tensor:
    """Blend with a smoothed image (3 × 3, the middle five times as heavy), `rest_B` its share; the rim stays. Neutral: 0."""
    if min(images_B3HW.shape[-2:]) <= 2:
        return images_B3HW
    pixels = images_B3HW.to(torch.float32)
    inner = pixels[..., 1:-1, 1:-1]
    columns = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    block = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]
    smooth = torch.round((block + inner * 4) / 13)
    sharpened = images_B3HW.clone(memory_format=torch.contiguous_format)
    sharpened[..., 1:-1, 1:-1] = to_bytes(torch.addcmul(inner, smooth - inner, _per_image(rest_B)))
    return sharpened


def posterize(images_B3HW: Tensor, bits_B: Tensor) -> Tensor:
    """Keep the highest bits of every byte. Neutral: 8.

    Args:
        images_B3HW: uint8.
        bits_B: integers from 0 to 8.
    """
    cut_B = 8 - bits_B.to(torch.int64)
    mask_B = (torch.full_like(cut_B, 255) >> cut_B) << cut_B
    return images_B3HW & _per_image(mask_B, torch.uint8)


def solarize(images_B3HW: Tensor, threshold_B: Tensor) -> Tensor:
    """Invert the bytes at or above a threshold. Neutral: above 255; at 0 the whole image is inverted."""
    at_least_B = torch.ceil(threshold_B)
    bright = images_B3HW >= _per_image(at_least_B.clamp(0, 255), torch.uint8)
    return images_B3HW ^ (as_mask(bright) & _per_image(as_mask(at_least_B <= 255), torch.uint8))


def solarize_add(images_B3HW: Tensor, added_B: Tensor) -> Tensor:
    """Add to the bytes below 128, cut off to a whole number. Neutral: 0.

    Args:
        images_B3HW: uint8.
        added_B: from 0 to 128.
    """
    dark = as_mask(images_B3HW < 128)
    return images_B3HW + (dark & _per_image(added_B, torch.uint8))


def autocontrast(images_B3HW: Tensor) -> Tensor:
    """Stretch each channel over all bytes, unless it is of one value."""
    least, most = (extreme.to(torch.float32) for extreme in _extremes(images_B3HW))
    flat = least == most
    least = torch.where(flat, 0.0, least)
    step = torch.where(flat, 1.0, (most - least) * (1 / 255))
    return to_bytes((images_B3HW.to(torch.float32) - least) / step)


def equalize(images_B3HW: Tensor) -> Tensor:
    """Make every byte about as frequent, in each channel, as Pillow does."""
    num_pixels = images_B3HW.shape[-2] * images_B3HW.shape[-1]
    bytes_B3P = images_B3HW.flatten(2).to(torch.int64)
    num_channels = bytes_B3P.shape[0] * bytes_B3P.shape[1]
    first_B31 = torch.arange(0, 256 * num_channels, 256, device=bytes_B3P.device).view(*bytes_B3P.shape[:2], 1)
    # In one dimension, for which torch has a deterministic implementation on GPUs.
    counts_V = torch.zeros(256 * num_channels, dtype=torch.int32, device=bytes_B3P.device)
    one = torch.ones((), dtype=torch.int32, device=bytes_B3P.device)
    counts_V.scatter_add_(0, (bytes_B3P + first_B31).flatten(), one.expand(bytes_B3P.numel()))
    counts_B3V = counts_V.view(*bytes_B3P.shape[:2], 256)
    up_to_B3V = counts_B3V.cumsum(2, dtype=torch.int32)
    brightest_B31 = up_to_B3V.argmax(2, keepdim=True)
    step_B31 = (num_pixels - counts_B3V.gather(2, brightest_B31)) // 255
    below_B3V = F.pad(up_to_B3V[..., :-1], (1, 0))
    table_B3V = ((below_B3V + step_B31 // 2) // step_B31.clamp(min=1)).clamp(0, 255)
    table_B3V[..., 0] = 0
    spread = table_B3V.to(torch.uint8).gather(2, bytes_B3P).view(images_B3HW.shape)
    return choose(step_B31[..., None] > 0, spread, images_B3HW)


def gaussian_blur(images_B3HW: Tensor, sigma_B: Tensor) -> Tensor:
    """Blur with a Gaussian of each image's own standard deviation, above 0 and at most MAX_BLUR pixels.

    The kernel reaches three times MAX_BLUR; edges are mirrored. Images must be larger than that reach.
    """
    num_rows, num_channels = images_B3HW.shape[:2]
    reach = _BLUR_TAPS // 2
    from_middle_K = torch.arange(-reach, reach + 1, device=sigma_B.device)
    kernel_BK = torch.softmax(-0.5 * (from_middle_K / sigma_B[:, None].to(torch.float32)) ** 2, dim=1)
    kernel_GK = kernel_BK.repeat_interleave(num_channels, dim=0)
    pixels = F.pad(images_B3HW.to(torch.float32), [reach] * 4, mode="reflect").reshape(
        1, -1, *_padded_size(images_B3HW, reach)
    )
    pixels = F.conv2d(pixels, kernel_GK[:, None, :, None], groups=len(kernel_GK))
    pixels = F.conv2d(pixels, kernel_GK[:, None, None, :], groups=len(kernel_GK))
    return torch.round(pixels).to(torch.uint8).view(num_rows, num_channels, *images_B3HW.shape[-2:])


def rotate_hue(images_B3HW: Tensor, turns_B: Tensor) -> Tensor:
    """Turn every pixel's hue by a fraction of the colour circle, from −0.5 to 0.5; value and saturation stay."""
    red, green, blue = images_B3HW.to(torch.float32).unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sixth = torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    sixth = torch.where(value == red, (green - blue) / divisor, sixth) + 6 * turns_B[:, None, None].to(torch.float32)
    turned = []
    for offset in (5, 3, 1):  # red, green, blue
        place = torch.remainder(sixth + offset, 6)
        turned.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    # torchvision's own rounding of [0, 1] to bytes: 256 equal steps
    return (torch.stack(turned, dim=1) * (255.999 / 255)).to(torch.uint8)


def choose(condition: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """Return bytes of `chosen` where a condition holds, else of `other`; the shapes broadcast."""
    return other ^ ((other ^ chosen) & as_mask(condition))


def as_mask(condition: Tensor) -> Tensor:
    """Return bytes of 255 where a condition holds, else of 0."""
    return condition.to(torch.uint8) * 255


def to_bytes(numbers: Tensor) -> Tensor:
    """Clamp to 0..255 and cut off to uint8."""
    return numbers.clamp(0, 255).to(torch.uint8)


def _per_image(values_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return values_B.to(dtype)[:, None, None, None]


def _extremes(images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest byte of each channel: uint8 (B, 3, 1, 1) each."""
    flat_B3P = images_B3HW.flatten(2)
    return flat_B3P.amin(2)[..., None, None], flat_B3P.amax(2)[..., None, None]


def _padded_size(images_B3HW: Tensor, reach: int) -> tuple[int, int]:
    height, width = images_B3HW.shape[-2:]
    return height + 2 * reach, width + 2 * reach
