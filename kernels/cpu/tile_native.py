"""`rlpheads.kernels.cpu.tile_pass.TilePass` in C++ (`tile_pass.cpp`, called by ctypes), for float32."""

import ctypes
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from rlpheads.kernels import native
from rlpheads.kernels.cpu.tile_pass import ClassSums, PlainPass, RowState, Tile, TilePass
from rlpheads.kernels.cpu.workspace import WORKSPACE
from rlpheads.kernels.native import address

MAX_ABOVE_SHIFT = 8.0
"""How far above its shift a row's largest logit may lie: so little that exponents lose no digits, so much that the shift of
the first classes mostly serves them all."""

MAX_PRODUCT_BYTES = 2**25
"""Limit of the bytes of all threads' feature sums (split-K); where they would take more, fewer threads work."""


def make_pass(features_BD: Tensor, labels_LB: Tensor) -> TilePass:
    """Choose the C++ for float32 where it can be compiled, else plain PyTorch.

    Args:
        features_BD: features in the dtype of every sum.
        labels_LB: contiguous, counted from the start of the class range.
    """
    library = None if features_BD.dtype != torch.float32 else native.load_library()
    return PlainPass(features_BD, labels_LB) if library is None else NativePass(library, features_BD, labels_LB)


class NativePass:
    """`TilePass` in C++. A row's shift is its maximum of the first classes, until a logit lies `MAX_ABOVE_SHIFT` above it.

    Whether one does is known only when the tile is overwritten: then its shift is raised, and the tile computed once more.

    Raises:
        MemoryError: by `reduce` and `exponentiate`, if there is none for their buffers.
    """

    def __init__(self, library: ctypes.CDLL, features_BD: Tensor, labels_LB: Tensor) -> None:
        self._library = library
        self._panel: int = library.rlpheads_panel()
        self._features_BD = features_BD
        self._labels_LB = labels_LB

    def reduce(
        self, tile: Tile, weight_KD: Tensor, bias_K: Tensor | None, out_KB: Tensor, state: RowState, sums: ClassSums
    ) -> None:
        """See `TilePass`."""
        products_TN = self._thread_products(sums)
        lacks_memory = self._library.rlpheads_reduce_tile(
            ctypes.byref(self._tile(tile, weight_KD, bias_K, out_KB)),
            ctypes.byref(_RowState(*map(address, state))),
            ctypes.byref(_ClassSums(*map(address, (*sums, products_TN)))),
            ctypes.c_float(MAX_ABOVE_SHIFT),
            len(products_TN),
        )
        check_memory(lacks_memory)

    def exponentiate(
        self, tile: Tile, weight_KD: Tensor, bias_K: Tensor | None, out_KB: Tensor, shift_B: Tensor
    ) -> None:
        """See `TilePass`."""
        lacks_memory = self._library.rlpheads_exponentiate_tile(
            ctypes.byref(self._tile(tile, weight_KD, bias_K, out_KB)),
            ctypes.c_void_p(address(shift_B)),
            torch.get_num_threads(),
        )
        check_memory(lacks_memory)

    def write_gradient(self, exp_KB: Tensor, scaled_BD: Tensor, out_KD: Tensor) -> None:
        """See `TilePass`."""
        rows_PBN = pack_panels(scaled_BD, self._panel)
        self._library.rlpheads_weight_gradient(
            *(ctypes.c_void_p(address(tensor)) for tensor in (exp_KB, rows_PBN, out_KD)),
            *map(ctypes.c_int64, (*exp_KB.shape, scaled_BD.shape[1])),
            torch.get_num_threads(),
        )

    def _thread_products(self, sums: ClassSums) -> Tensor:
        """Buffers of each thread's feature sums (split-K), in whole panels of features: a row for each working thread."""
        num_rows, num_features = self._features_BD.shape
        kinds = sum(len(product_BD) > 0 for product_BD in (sums.exp_weight_BD, sums.moment_weight_BD))
        num_products = kinds * num_rows * -(-num_features // self._panel) * self._panel
        fitting = MAX_PRODUCT_BYTES // (4 * num_products) if num_products else torch.get_num_threads()
        return WORKSPACE.empty((min(torch.get_num_threads(), max(fitting, 1)), num_products), torch.float32)

    @cached_property
    def _feature_panels(self) -> Tensor:
        """The features' transpose in panels; a weight's gradient does without."""
        return pack_panels(self._features_BD.T, self._panel)

    def _tile(self, tile: Tile, weight_KD: Tensor, bias_K: Tensor | None, out_KB: Tensor) -> "_Tile":
        arrays = (weight_KD, bias_K, self._feature_panels, self._labels_LB, out_KB)
        return _Tile(*map(address, arrays), tile.start, *weight_KD.shape, *reversed(self._labels_LB.shape))


class _Tile(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "features", "labels", "exponentials")),
        *((name, ctypes.c_int64) for name in ("start", "width", "num_features", "num_rows", "num_labels")),
    )


class _RowState(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("shift", "sum", "moment", "label_logit", "max_before", "max_after")
    )


class _ClassSums(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("exp_weight", "moment_weight", "weight_sum", "thread_products")
    )


def check_memory(lacks_memory: int) -> None:
    """Raise MemoryError where the C++ says that there was none."""
    if lacks_memory:
        raise MemoryError("there is none for the buffers of the loss on the CPU")


def pack_panels(matrix_MN: Tensor, width: int) -> Tensor:
    """Cut a matrix into panels of so many columns, the last filled up with zeros: (panels, M, width), contiguous."""
    missing = -matrix_MN.shape[1] % width
    padded_MN = F.pad(matrix_MN, (0, missing)) if missing else matrix_MN
    return padded_MN.unflatten(1, (-1, width)).transpose(0, 1).contiguous()
