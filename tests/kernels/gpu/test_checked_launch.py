"""What no kernel may be given: tensors that lie otherwise than it computes places. Needs no Triton."""

import pytest
import torch
from torch import Tensor

from rlpheads.kernels.gpu.checked_launch import Strided, launch_kernel


class Kernel:
    """Notes what is launched."""

    __name__ = "some_kernel"

    def __init__(self) -> None:
        self.launches: list[tuple[object, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *arguments, **options: self.launches.append((grid, *arguments, options))


MATRIX = torch.zeros(3, 4)


@pytest.mark.parametrize(
    "argument",
    [MATRIX.T, MATRIX[:, :2], MATRIX[0, :1].expand(5), Strided(MATRIX.T), (MATRIX[0], MATRIX[:, 0])],
    ids=["transposed", "cut", "expanded", "transposed rows", "in a tuple"],
)
def test_what_lies_otherwise_is_refused(argument: Tensor | Strided | tuple[Tensor, ...]) -> None:
    kernel = Kernel()
    with pytest.raises(RuntimeError, match=r"some_kernel cannot take a \(.*\) with strides \(.*\)"):
        launch_kernel(kernel, (1,), argument)
    assert not kernel.launches


def test_what_lies_right_is_launched_as_it_is() -> None:
    """Rows apart where the kernel knows how far; sizes of 1, whose strides say nothing; numbers, and nothing."""
    kernel, rows, one = Kernel(), MATRIX[:, :2], MATRIX.T[:, :1]
    vectors = Strided(MATRIX[:, 0]), Strided(MATRIX[0])
    launch_kernel(kernel, (2, 3), MATRIX, Strided(rows), Strided(one), vectors, MATRIX.T[:, :1].T, None, 7, num_warps=4)
    ((grid, whole, of_rows, of_one, of_vectors, *rest, number, options),) = kernel.launches
    assert (grid, number, options) == ((2, 3), 7, {"num_warps": 4})
    assert whole is MATRIX
    assert of_rows is rows
    assert of_one is one
    assert [each.stride(0) for each in of_vectors] == [4, 1]
    assert rest[1] is None
