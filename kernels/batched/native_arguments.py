"""The arguments of the calls of C++ for heads of few labels (`batched_heads.h`), packed as bytes.

A call of few labels costs what its arguments do: one packing in place of a ctypes array for each list.
"""

import struct
from collections.abc import Sequence

from torch import Tensor

from rlpheads.kernels.native import plain_floats

BAD_VALUES = 2
"""What C++ returns where a label is none of the classes or a weight is outside [0, 1]."""


def packed_heads(
    sizes: tuple[int, int, int],
    widths: Sequence[int],
    matrices: Sequence[Tensor | None],
    labels: tuple[Tensor | None, Tensor | None] = (None, None),
) -> bytes:
    """`BatchedHeads` of batched_heads.h. The tensors are plain, and must outlive the call; what it does not read is None.

    Args:
        sizes: H, B and K.
        widths: D of each head.
        matrices: the features of all heads, then their weights, then their biases.
        labels: those of the rows (L, R), and the weight (R,) of the first of two.
    """
    labels_a_row = 0 if labels[0] is None else labels[0].shape[0]
    return struct.pack(f"{6 + 4 * sizes[0]}q", *sizes, labels_a_row, *_places([*labels, *matrices]), *widths)


def plain_labels(labels: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Labels of rows and the weight of the first of two, as C++ reads them."""
    (first_weight_R,) = plain_floats([labels[1]])
    return labels[0].contiguous(), first_weight_R


def packed_places(tensors: Sequence[Tensor | None]) -> bytes:
    """Where each tensor lies, all of them contiguous, as an array of pointers."""
    return struct.pack(f"{len(tensors)}q", *_places(tensors))


def _places(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if each is None else each.data_ptr() for each in tensors]


def raise_if_no_memory(failure: int) -> None:
    """Raise MemoryError where C++ says that there was none."""
    if failure:
        raise MemoryError("there is none for the buffers of the loss on the CPU")
