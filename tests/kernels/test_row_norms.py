"""Norms of rows, from which that of a large tensor is right."""

import pytest
import torch

from rlpheads.kernels.row_norms import row_norms


@pytest.mark.parametrize("shape", [(7,), (), (5, 3), (4, 2, 3, 3), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_their_norm_is_that_of_all_numbers(shape, dtype):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    norms = row_norms(tensor)
    assert norms.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert norms.shape == tensor.shape[:1]
    torch.testing.assert_close(torch.linalg.vector_norm(norms.double()), torch.linalg.vector_norm(tensor.double()))


def test_channels_last_images_need_no_copy():
    images = torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last)
    torch.testing.assert_close(row_norms(images), images.flatten(1).norm(dim=1))
