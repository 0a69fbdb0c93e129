"""A batch of pictures for the tests of augmentation."""

import torch
from sklearn.datasets import load_sample_images


def photographs(height: int, width: int, count: int = 12) -> torch.Tensor:
    """Return windows of two photographs, one flat grey, one black, and one of noise."""
    pictures = [torch.from_numpy(each.copy()).permute(2, 0, 1) for each in load_sample_images().images]
    windows = [
        pictures[n % 2][:, 37 * n % 300 : 37 * n % 300 + height, 61 * n % 500 : 61 * n % 500 + width]
        for n in range(count - 3)
    ]
    noise = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return torch.stack([*windows, torch.full_like(noise, 77), torch.zeros_like(noise), noise])
