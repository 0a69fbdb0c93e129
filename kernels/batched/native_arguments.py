"""The arguments of the calls of C++ for heads of few labels (`batched_heads.h`), and what tensors become there."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from rlpheads.kernels.native import address

BAD_VALUES = 2
"""What C++ returns where a label is none of the classes or a weight is outside [0, 1]."""

KINDS = (None, "unlikelihood", "uniform", "reversal", "entropy")
"""The regularisers, in the order of `Kind` in row_terms.h."""


class HeadPointers(ctypes.Structure):
    """`BatchedHeads` of batched_heads.h."""

    _fields_ = (
        *((name, ctypes.POINTER(ctypes.c_void_p)) for name in ("features", "weights", "biases")),
        ("num_features", ctypes.POINTER(ctypes.c_int64)),
        *((name, ctypes.c_void_p) for name in ("labels", "first_weight")),
        *((name, ctypes.c_int64) for name in ("num_heads", "num_rows", "num_labels", "labels_a_row")),
    )


class OutputPointers(ctypes.Structure):
    """`BatchedOutputs` of batched_heads.h."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            *("cross_entropy", "regularizer", "bits", "margin", "lse", "hit"),
            *("class_gradient", "feature_gradient", "logits"),
        )
    )


def plain_floats(tensor: Tensor) -> Tensor:
    """The tensor in float32 and contiguous, as it mostly is."""
    return tensor if tensor.dtype == torch.float32 and tensor.is_contiguous() else tensor.float().contiguous()


def widths(matrices: list[Tensor]) -> "ctypes.Array[ctypes.c_int64]":
    """D of each matrix (…, D)."""
    return (ctypes.c_int64 * len(matrices))(*[matrix.shape[1] for matrix in matrices])


def pointers(tensors: Sequence[Tensor | None]) -> "ctypes.Array[ctypes.c_void_p]":
    """Where each tensor lies, null for None."""
    return (ctypes.c_void_p * len(tensors))(*map(address, tensors))


def raise_if_no_memory(failure: int) -> None:
    """Raise MemoryError where C++ says that there was none."""
    if failure:
        raise MemoryError("there is none for the buffers of the loss on the CPU")
