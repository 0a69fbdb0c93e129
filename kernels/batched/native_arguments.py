"""The arguments of the calls of C++ for heads of few labels (`batched_heads.h`), and what tensors become there."""

import ctypes
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from rlpheads.kernels.native import address

_MaybeTensor = TypeVar("_MaybeTensor", Tensor, Tensor | None)

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


def plain_floats(tensors: Iterable[_MaybeTensor]) -> list[_MaybeTensor]:
    """Tensors in float32 and contiguous, as they mostly are; None stays None."""
    return [
        each if each is None or (each.dtype == torch.float32 and each.is_contiguous()) else each.float().contiguous()
        for each in tensors
    ]


def widths(matrices: list[Tensor]) -> "ctypes.Array[ctypes.c_int64]":
    """D of each matrix (…, D)."""
    return (ctypes.c_int64 * len(matrices))(*[matrix.shape[1] for matrix in matrices])


def pointers(tensors: Sequence[Tensor | None]) -> "ctypes.Array[ctypes.c_void_p]":
    """Where each tensor lies, null for None; as `rlpheads.kernels.native.address`, without a call of Python's for each."""
    places = [
        None if each is None else each.data_ptr() if each.is_contiguous() else address(each)  # which raises
        for each in tensors
    ]
    return (ctypes.c_void_p * len(places))(*places)


def raise_if_no_memory(failure: int) -> None:
    """Raise MemoryError where C++ says that there was none."""
    if failure:
        raise MemoryError("there is none for the buffers of the loss on the CPU")
