"""The arguments of the calls of C++ for heads of few labels (`batched_heads.h`)."""

import ctypes

from rlpheads.kernels.head_rows.row_native import ValuePointers

BAD_VALUES = 2
"""What C++ returns where a label is none of the classes or a weight is outside [0, 1]."""


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

    _fields_ = (
        *ValuePointers._fields_,
        *((name, ctypes.c_void_p) for name in ("class_gradient", "feature_gradient", "logits")),
    )


def raise_if_no_memory(failure: int) -> None:
    """Raise MemoryError where C++ says that there was none."""
    if failure:
        raise MemoryError("there is none for the buffers of the loss on the CPU")
