"""The gradient of a head's weight used up tile by tile in C++ (`tile_update.cpp`), for float32: it never lies in memory.

The optimizer's step is taken where the gradient is made; its norm and the gradient of the bias come of the same pass. Where a
step depends on the norm (clipping), the gradient is surveyed before: with fewer rows B than twice the D features by products of
pairs of rows, B²·K operations in place of B·D·K: with G = dL/dz the squared norm is the sum of (G·Gᵀ)∘(X·Xᵀ).
"""

import ctypes

import torch
from torch import Tensor

from rlpheads.kernels import native
from rlpheads.kernels.cpu.tile_native import address, check_memory, pack_panels
from rlpheads.kernels.cpu.tiled_cpu import GradientTile, TiledHead
from rlpheads.kernels.rows.partials import ClassRange, Exponentials, LogitGradient, accumulation_dtype
from rlpheads.kernels.rows.updates import AdamRule, SgdRule, UpdateRule, rule_of


def serves(features_BD: Tensor, weight_KD: Tensor) -> bool:
    """Whether the C++ is there, and serves heads like this."""
    return (
        weight_KD.device.type == "cpu"
        and weight_KD.dtype == accumulation_dtype(features_BD, weight_KD) == torch.float32
        and weight_KD.is_contiguous()
        and native.load_library() is not None
    )


def survey(
    features_BD: Tensor, head: ClassRange, labels_LB: Tensor, exponentials: Exponentials, gradient: LogitGradient
) -> tuple[Tensor, Tensor]:
    """See `rlpheads.kernels.rows.updates.Updates`."""
    found: tuple[Tensor, Tensor] = _survey_op(
        features_BD, head.weight_KD, head.bias_K, labels_LB, head.start, *exponentials[:2], *gradient
    )
    return found


def update(
    features_BD: Tensor,
    head: ClassRange,
    labels_LB: Tensor,
    exponentials: Exponentials,
    gradient: LogitGradient,
    rule: UpdateRule,
    states: list[Tensor],
    left_out: Tensor,
    copy_KD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `rlpheads.kernels.rows.updates.Updates`."""
    found: tuple[Tensor, Tensor] = _update_op(
        features_BD,
        head.weight_KD,
        head.bias_K,
        labels_LB,
        head.start,
        *exponentials[:2],
        *gradient,
        states,
        left_out,
        isinstance(rule, AdamRule),
        [float(number) for number in rule],
    )
    if copy_KD is not None:
        copy_KD.copy_(head.weight_KD)
    return found


@torch.library.custom_op("rlpheads::tiled_cpu_survey", mutates_args=(), device_types="cpu")
@torch.autocast("cpu", enabled=False)
def _survey_op(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    exp_flat: Tensor,
    tile_shift_CB: Tensor,
    scale_CB: Tensor,
    label_LB: Tensor,
) -> tuple[Tensor, Tensor]:
    return _surveyed(features_BD, weight_KD, bias_K, labels_LB, start, exp_flat, tile_shift_CB, scale_CB, label_LB)


@_survey_op.register_fake
def _(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    exp_flat: Tensor,
    tile_shift_CB: Tensor,
    scale_CB: Tensor,
    label_LB: Tensor,
) -> tuple[Tensor, Tensor]:
    return weight_KD.new_empty(len(weight_KD)), weight_KD.new_empty((), dtype=torch.float64)


@torch.library.custom_op("rlpheads::tiled_cpu_update", mutates_args=("weight_KD", "states"), device_types="cpu")
@torch.autocast("cpu", enabled=False)
def _update_op(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    exp_flat: Tensor,
    tile_shift_CB: Tensor,
    scale_CB: Tensor,
    label_LB: Tensor,
    states: list[Tensor],
    left_out: Tensor,
    is_adam: bool,
    numbers: list[float],
) -> tuple[Tensor, Tensor]:
    if left_out:
        return _surveyed(features_BD, weight_KD, bias_K, labels_LB, start, exp_flat, tile_shift_CB, scale_CB, label_LB)
    of_weight = [*states, None, None][:2]
    rule = rule_of(is_adam, numbers)
    if isinstance(rule, AdamRule):
        states[2] += 1
        constants = _adam_constants(rule, float(states[2]))
    else:
        constants = _sgd_constants(rule)
    head = _tiled_head(features_BD, weight_KD, bias_K, labels_LB - start, exp_flat)
    library, num_features, threads = _library(), features_BD.shape[1], torch.get_num_threads()
    panels_PBN = pack_panels(head.features_BD, library.rlpheads_panel())
    bias_gradient_K = head.features_BD.new_empty(len(weight_KD))
    squared_T = torch.zeros(threads, dtype=torch.float64)
    tiles = head.gradient_tiles(Exponentials(exp_flat, tile_shift_CB), LogitGradient(scale_CB, label_LB))
    for each in tiles:
        rows = slice(each.tile.start, each.tile.stop)
        arrays = [None if array is None else array[rows] for array in (weight_KD, *of_weight, bias_gradient_K)]
        lacks_memory = library.rlpheads_update_tile(
            ctypes.byref(_tile_gradient(each, panels_PBN, num_features)),
            ctypes.byref(_Step(*map(address, (*arrays, squared_T)), *constants)),
            threads,
        )
        check_memory(lacks_memory)
    return bias_gradient_K, squared_T.sum()


@_update_op.register_fake
def _(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    exp_flat: Tensor,
    tile_shift_CB: Tensor,
    scale_CB: Tensor,
    label_LB: Tensor,
    states: list[Tensor],
    left_out: Tensor,
    is_adam: bool,
    numbers: list[float],
) -> tuple[Tensor, Tensor]:
    return weight_KD.new_empty(len(weight_KD)), weight_KD.new_empty((), dtype=torch.float64)


def _surveyed(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    exp_flat: Tensor,
    tile_shift_CB: Tensor,
    scale_CB: Tensor,
    label_LB: Tensor,
) -> tuple[Tensor, Tensor]:
    head = _tiled_head(features_BD, weight_KD, bias_K, labels_LB - start, exp_flat)
    num_rows, num_features = features_BD.shape
    library, threads = _library(), torch.get_num_threads()
    panel = library.rlpheads_panel()
    panels_PBN = pack_panels(head.features_BD, panel)
    in_pairs = num_rows < 2 * num_features
    shape = (threads * in_pairs, -(-num_rows // panel), num_rows, panel)
    products_TPBN = torch.zeros(shape, dtype=torch.float64)
    squared_T = torch.zeros(threads * (not in_pairs), dtype=torch.float64)
    bias_gradient_K = head.features_BD.new_empty(len(weight_KD))
    tiles = head.gradient_tiles(Exponentials(exp_flat, tile_shift_CB), LogitGradient(scale_CB, label_LB))
    for each in tiles:
        bias_K_of_tile = bias_gradient_K[each.tile.start : each.tile.stop]
        lacks_memory = library.rlpheads_survey_tile(
            ctypes.byref(_tile_gradient(each, panels_PBN, num_features)),
            ctypes.byref(_Survey(*map(address, (bias_K_of_tile, products_TPBN, squared_T)))),
            threads,
        )
        check_memory(lacks_memory)
    squared = _sum_over_pairs(products_TPBN.sum(0), head.features_BD) if in_pairs else squared_T.sum()
    return bias_gradient_K, squared


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


def _tiled_head(
    features_BD: Tensor, weight_KD: Tensor, bias_K: Tensor | None, labels_LB: Tensor, exp_flat: Tensor
) -> TiledHead:
    num_kept = exp_flat.numel() // max(len(features_BD), 1)
    return TiledHead(features_BD, weight_KD, bias_K, labels_LB, num_kept=num_kept)


def _tile_gradient(each: GradientTile, panels_PBN: Tensor, num_features: int) -> "_TileGradient":
    arrays = (each.exp_KB, each.scale_B, each.tile.column_N, each.tile.row_N, each.label_N, panels_PBN)
    return _TileGradient(*map(address, arrays), *each.exp_KB.shape, len(each.label_N), num_features)


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
