"""The gradient of a head's weight used up tile by tile in C++ (`tile_update.cpp`), for float32: it never lies in memory.

The optimizer's step is taken where the gradient is made; its norm and the gradient of the bias come of the same pass. Where a
step depends on the norm (clipping), the gradient is surveyed before: with fewer rows B than twice the D features by products of
pairs of rows, B²·K operations in place of B·D·K: with G = dL/dz the squared norm is the sum of (G·Gᵀ)∘(X·Xᵀ).
"""

import ctypes
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels import native
from rlpheads.kernels.cpu.tile_native import check_memory, pack_panels
from rlpheads.kernels.cpu.tiled_cpu import GradientTile, TiledHead
from rlpheads.kernels.native import address
from rlpheads.kernels.operators import register_named_operator
from rlpheads.kernels.rows.partials import accumulation_dtype
from rlpheads.kernels.rows.updates import (
    CHANGED_BY_UPDATE,
    AdamRule,
    SgdRule,
    SurveyArguments,
    UpdateArguments,
    shape_of_survey,
    shape_of_update,
)


def serves(features_BD: Tensor, weight_KD: Tensor) -> bool:
    """Whether the C++ is there, and serves heads like this."""
    return (
        weight_KD.device.type == "cpu"
        and weight_KD.dtype == accumulation_dtype(features_BD, weight_KD) == torch.float32
        and weight_KD.is_contiguous()
        and native.load_library() is not None
    )


class _HeadGradient(NamedTuple):
    """What the gradient of a head's weight is made of, tile by tile."""

    features_BD: Tensor
    """Widened."""
    panels_PBN: Tensor
    """The same, packed."""
    tiles: Iterator[GradientTile]

    @classmethod
    def of(cls, given: SurveyArguments, panel: int) -> "_HeadGradient":
        """Return that of a head; exponentials that were not kept are made anew, tile by tile."""
        features_BD, (weight_KD, bias_K, start, _), labels_LB, exponentials, gradient = given
        num_kept = exponentials.flat.numel() // max(len(features_BD), 1)
        head = TiledHead(features_BD, weight_KD, bias_K, labels_LB - start, num_kept=num_kept)
        return cls(head.features_BD, pack_panels(head.features_BD, panel), head.gradient_tiles(exponentials, gradient))

    def in_memory(self, each: GradientTile) -> "_TileGradient":
        """Return a tile as C++ takes it."""
        arrays = (each.exp_KB, each.scale_B, each.tile.column_N, each.tile.row_N, each.label_N, self.panels_PBN)
        sizes = (*each.exp_KB.shape, len(each.label_N), self.features_BD.shape[1])
        return _TileGradient(*map(address, arrays), *sizes)


@torch.autocast("cpu", enabled=False)
def _compute_survey(given: SurveyArguments) -> tuple[Tensor, Tensor]:
    library, threads = _library(), torch.get_num_threads()
    panel = library.rlpheads_panel()
    gradient, bias_gradient_K = _HeadGradient.of(given, panel), _empty_bias_gradient(given)
    num_rows, num_features = given.features_BD.shape
    in_pairs = num_rows < 2 * num_features
    shape = (threads * in_pairs, -(-num_rows // panel), num_rows, panel)
    products_TPBN = torch.zeros(shape, dtype=torch.float64)
    squared_T = torch.zeros(threads * (not in_pairs), dtype=torch.float64)
    for each in gradient.tiles:
        bias_K_of_tile = bias_gradient_K[each.tile.start : each.tile.stop]
        lacks_memory = library.rlpheads_survey_tile(
            ctypes.byref(gradient.in_memory(each)),
            ctypes.byref(_Survey(*map(address, (bias_K_of_tile, products_TPBN, squared_T)))),
            threads,
        )
        check_memory(lacks_memory)
    squared = _sum_over_pairs(products_TPBN.sum(0), gradient.features_BD) if in_pairs else squared_T.sum()
    return bias_gradient_K, squared


@torch.autocast("cpu", enabled=False)
def _compute_update(given: UpdateArguments) -> tuple[Tensor, Tensor]:
    if given.left_out:
        return _compute_survey(given.of_gradient)
    states, rule, weight_KD = given.states, given.rule, given.of_gradient.head.weight_KD
    of_weight = [*states, None, None][:2]
    if isinstance(rule, AdamRule):
        states[2] += 1
        constants = _adam_constants(rule, float(states[2]))
    else:
        constants = _sgd_constants(rule)
    library, threads = _library(), torch.get_num_threads()
    gradient = _HeadGradient.of(given.of_gradient, library.rlpheads_panel())
    bias_gradient_K, squared_T = _empty_bias_gradient(given.of_gradient), torch.zeros(threads, dtype=torch.float64)
    for each in gradient.tiles:
        rows = slice(each.tile.start, each.tile.stop)
        arrays = [None if array is None else array[rows] for array in (weight_KD, *of_weight, bias_gradient_K)]
        lacks_memory = library.rlpheads_update_tile(
            ctypes.byref(gradient.in_memory(each)),
            ctypes.byref(_Step(*map(address, (*arrays, squared_T)), *constants)),
            threads,
        )
        check_memory(lacks_memory)
    if given.copy_KD is not None:
        given.copy_KD.copy_(weight_KD)
    return bias_gradient_K, squared_T.sum()


survey = register_named_operator("tiled_cpu_survey", _compute_survey, shape_of_survey)
"""See `rlpheads.kernels.rows.updates.Updates`."""
update = register_named_operator("tiled_cpu_update", _compute_update, shape_of_update, mutated=CHANGED_BY_UPDATE)
"""See `rlpheads.kernels.rows.updates.Updates`."""


def _empty_bias_gradient(given: SurveyArguments) -> Tensor:
    return given.features_BD.new_empty(len(given.head.weight_KD), dtype=torch.float32)


def _adam_constants(rule: AdamRule, num_steps: float) -> tuple[float, ...]:
    """Return the numbers of one step in the order of `_Step`: in float64, as torch's are."""
    beta1, beta2 = rule.beta1, rule.beta2
    root = (1 - beta2**num_steps) ** 0.5
    rate = rule.lr / (1 - beta1**num_steps)
    # 1 - 0.999 in float32 would be off by 1.3e-5
    return rule.keep, rule.l2, beta1, 1 - beta1, beta2, 1 - beta2, rate, 1 / root, rule.eps, 0


def _sgd_constants(rule: SgdRule) -> tuple[float, ...]:
    return 1.0, rule.weight_decay, rule.momentum, 1.0, 0.0, 0.0, rule.lr, 0.0, 0.0, int(rule.nesterov)


def _sum_over_pairs(products_PBN: Tensor, features_BD: Tensor) -> Tensor:
    """Sum (G·Gᵀ)∘(X·Xᵀ), the first in panels of columns and right where the column is not before the row."""
    num_rows = len(features_BD)
    products_BB = products_PBN.transpose(0, 1).flatten(1)[:, :num_rows].triu()
    wide_BD = features_BD.double()
    twice = 2 * (products_BB * (wide_BD @ wide_BD.T)).sum()
    return twice - (products_BB.diagonal() * wide_BD.square().sum(1)).sum()


def _library() -> ctypes.CDLL:
    library = native.load_library()
    assert library is not None
    return library


class _TileGradient(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("exponentials", "scale", "label_class", "label_row", "label_gradient", "features")
        ),
        *((name, ctypes.c_int64) for name in ("width", "num_rows", "num_labels", "num_features")),
    )


class _Survey(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("bias_gradient", "products", "squared"))


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "first", "second", "bias_gradient", "squared")),
        *(
            (name, ctypes.c_float)
            for name in (
                *("keep", "l2", "first_decay", "first_share", "second_decay", "second_share"),
                *("rate", "inverse_root", "eps"),
            )
        ),
        ("nesterov", ctypes.c_int64),
    )
