"""The one way to launch a Triton kernel: a kernel computes places from sizes, so that each tensor must lie as it takes it to.

A view of two rows, or of one row a head, often lies as another view would, until a size is 1: the launch looks, and nobody
need think of it. It looks at strides alone, and so waits for nothing. Imports no Triton.
"""

from typing import Any, NamedTuple

from torch import Tensor


class Strided(NamedTuple):
    """A vector or matrix whose `stride(0)` the kernel takes, too; the elements of a matrix's rows must lie side by side."""

    tensor: Tensor


def launch_kernel(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a kernel, whose tensors must be contiguous but where they are `Strided`; None stands for none.

    Raises:
        RuntimeError: a tensor lies otherwise: the kernel would read or write another tensor's numbers.
    """
    kernel[grid](*[_as_the_kernel_takes_it(kernel, argument) for argument in arguments], **options)


def _as_the_kernel_takes_it(kernel: Any, argument: Any) -> Any:
    if isinstance(argument, Strided):
        tensor = argument.tensor
        lies_right = tensor.ndim == 1 or tensor.stride(1) == 1 or tensor.shape[1] == 1
        return _checked(kernel, tensor, lies_right)
    if isinstance(argument, Tensor):
        return _checked(kernel, argument, argument.is_contiguous())
    if isinstance(argument, tuple):
        return tuple(_as_the_kernel_takes_it(kernel, each) for each in argument)
    return argument


def _checked(kernel: Any, tensor: Tensor, lies_right: bool) -> Tensor:
    if not lies_right:
        raise RuntimeError(f"{kernel.__name__} cannot take a {tuple(tensor.shape)} with strides {tensor.stride()}")
    return tensor
