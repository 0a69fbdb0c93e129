"""Launchers of the Triton kernels: one function a kernel, which sets its grid, tiles and flags; no host synchronisation.

Imported at the first launch only, so that the rest runs where there is no Triton.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from rlpheads.kernels.gpu import triton_kernels as kernels
from rlpheads.kernels.gpu import triton_row_kernels as row_kernels
from rlpheads.kernels.gpu.slab_plan import PassOutputs, pad_classes
from rlpheads.kernels.gpu.triton_tiles import (
    FIRST_CLASSES,
    INTERPRETED_TILES,
    OVERSHOOT,
    TileConfig,
    chip_tiles,
    without_descriptors,
)
from rlpheads.kernels.gpu.tuned_tiles import TuningCase, select_tiles

EMULATED = bool(triton.knobs.runtime.interpret)
"""Triton's interpreter runs the kernels, on the CPU."""

SHIFT_TILE = {"ROWS": 16, "CLASSES": FIRST_CLASSES, "FEATURES": 32, "num_warps": 8}
GATHER_TILE = {"ROWS": 256, "num_warps": 4}
MERGE_TILE = {"ROWS": 8, "TILES": 256, "num_warps": 4}
LABEL_TILE = {"LABELS": 16, "FEATURES": 256, "num_warps": 4}
if EMULATED:
    LABEL_TILE = {"LABELS": 256, "FEATURES": 1024, "num_warps": 4}  # the interpreter's time is by the operation
ALIGN_TILE = {"ROWS": 64, "num_warps": 8}
SUM_TILE = {"ROWS": 32, "CLASSES": 128, "num_warps": 4}


class Operands(NamedTuple):
    """Features, and a range of the head's classes; the kernels take both in one dtype."""

    features_BD: Tensor
    weight_KD: Tensor
    bias_K: Tensor | None
    labels_LB: Tensor
    start: int
    """Label of the first class of `weight_KD`."""

    def narrow(self, start: int, stop: int) -> "Operands":
        """Slice the classes [start, stop)."""
        bias_K = None if self.bias_K is None else self.bias_K[start:stop]
        return self._replace(weight_KD=self.weight_KD[start:stop], bias_K=bias_K, start=self.start + start)

    def cast(self, features_BD: Tensor) -> "Operands":
        """The same with these features, and the weight in their dtype; both with contiguous rows."""
        weight_KD = self.weight_KD.to(features_BD.dtype)
        return self._replace(features_BD=with_dense_rows(features_BD), weight_KD=with_dense_rows(weight_KD))


class ExpReference(NamedTuple):
    """What a row's exponentials are relative to: E = e^{z − shift} − base."""

    shift_B: Tensor
    base_B: Tensor
    """0 or 1, or that halved with every lift; empty where every base is 0."""


class TileStatistics(NamedTuple):
    """Softmax statistics of a slab's C tiles, all float32."""

    max_CB: Tensor
    sum_CB: Tensor
    moment_CB: Tensor
    logits_CB: Tensor
    label_stats_FB: Tensor
    """Logit of each label, then the largest logits before and after the first label in its own tile."""


class SlabBuffers(NamedTuple):
    """Where a slab's exponentials and moments go, each (rows, classes); None where they are not kept."""

    exp_RK: Tensor | None
    moment_BK: Tensor | None = None


def tiles_for(operands: Operands, *, has_base: bool) -> TileConfig:
    """Tiles for the device that the operands are on: those that were measured there for these shapes, if there are any.

    Raises:
        ValueError: the file of measured tiles cannot be read.
    """
    case = tuning_case(operands, has_base=has_base)
    return select_tiles(case, candidate_tiles(operands.features_BD, case))


def tuning_case(operands: Operands, *, has_base: bool) -> TuningCase:
    """Key of the autotuned tiles of a pass over the operands' classes; `has_base` where it has bases or moments."""
    features_BD, weight_KD, bias_K, labels_LB, _ = operands
    name = str(features_BD.dtype).removeprefix("torch.")
    return TuningCase(
        device="Triton's interpreter" if EMULATED else torch.cuda.get_device_name(features_BD.device),
        triton=triton.__version__,
        operands=f"{name} by {matmul_precision(features_BD.dtype)}" if features_BD.dtype == torch.float32 else name,
        rows=len(features_BD),
        features=features_BD.shape[1],
        classes=len(weight_KD),
        rich=has_base or len(labels_LB) == 2,
        bias=bias_K is not None,
    )


def candidate_tiles(features_BD: Tensor, case: TuningCase) -> tuple[TileConfig, ...]:
    """Tiles that a case can have, on the features' device; the first are taken where none were measured."""
    if EMULATED:
        return INTERPRETED_TILES
    major, minor = torch.cuda.get_device_capability(features_BD.device)
    return chip_tiles(10 * major + minor, features_BD.dtype, case.rows, rich=case.rich, bias=case.bias)


def compile_options(tiles: TileConfig) -> dict[str, int]:
    """Triton's compile options of `class_tiles`: warps, pipeline stages, register limit."""
    limit = {} if tiles.registers is None else {"maxnreg": tiles.registers}
    return {"num_warps": tiles.warps, "num_stages": tiles.stages, **limit}


def matmul_precision(dtype: torch.dtype) -> str:
    """How float32 operands are multiplied: TF32 if torch allows it, else three TF32 products in place of each."""
    return "tf32x3" if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest" else "tf32"


def gather_tables(rows: Sequence[Tensor], indices: Sequence[Tensor | None], labels_SB: Tensor) -> None:
    """Write the labels of S heads: where a head has an index, `row[index]`, else its row."""
    num_sources, num_rows = labels_SB.shape
    row_kernels.gather_labels_kernel[(triton.cdiv(num_rows, GATHER_TILE["ROWS"]), num_sources)](
        *(tuple(rows), tuple(None if index_B is None else index_B.contiguous() for index_B in indices)),
        *(tuple(row_N.stride(0) for row_N in rows), tuple(map(len, rows)), labels_SB, num_rows),
        SOURCES=num_sources,
        **GATHER_TILE,
    )


def row_shifts(operands: Operands, has_base: bool) -> ExpReference:
    """Guess each row's softmax shift from its first classes."""
    features_BD, weight_KD = operands.features_BD, operands.weight_KD
    num_rows, num_features = features_BD.shape
    shift_B = features_BD.new_empty(num_rows, dtype=torch.float32)
    base_B = shift_B.new_empty(num_rows if has_base else 0)
    kernels.row_shifts_kernel[(triton.cdiv(num_rows, SHIFT_TILE["ROWS"]),)](
        *(features_BD, weight_KD, operands.bias_K, operands.labels_LB, shift_B, base_B),
        *(num_rows, min(len(weight_KD), FIRST_CLASSES), num_features, operands.start),
        *(features_BD.stride(0), weight_KD.stride(0)),
        HAS_BIAS=operands.bias_K is not None,
        PAIR=len(operands.labels_LB) == 2,
        HAS_BASE=has_base,
        PRECISION=matmul_precision(features_BD.dtype),
        EMULATED=EMULATED,
        **SHIFT_TILE,
    )
    return ExpReference(shift_B, base_B)


def allocate_statistics(
    operands: Operands, tiles: TileConfig, outputs: PassOutputs, label_stats_FB: Tensor
) -> TileStatistics:
    """Uninitialised statistics of a slab's tiles; `label_stats_FB` is that of all slabs."""
    shape = triton.cdiv(len(operands.weight_KD), tiles.classes), len(operands.features_BD)
    max_CB, sum_CB = label_stats_FB.new_empty(2, *shape)
    moment_CB, logits_CB = (label_stats_FB.new_empty(shape if is_wanted else 0) for is_wanted in outputs[1:])
    return TileStatistics(max_CB, sum_CB, moment_CB, logits_CB, label_stats_FB)


def class_tiles(
    operands: Operands,
    reference: ExpReference,
    buffers: SlabBuffers,
    tiles: TileConfig,
    statistics: TileStatistics | None = None,
) -> None:
    """Compute the exponentials of a slab, and, if `statistics` is given, the statistics of its tiles."""
    features_BD, weight_KD, bias_K, labels_LB, start = operands
    num_rows, num_classes, num_labels = len(features_BD), len(weight_KD), len(labels_LB)
    exp_RK, moment_BK = buffers
    num_buffer_rows = num_rows if exp_RK is None else len(exp_RK)
    unused = reference.shift_B
    max_CB, sum_CB, moment_CB, logits_CB, label_stats_FB = statistics or (
        *[unused] * 4,
        unused.expand(num_labels + 2, -1),
    )
    use_tma = tiles.tma and _has_descriptor(features_BD) and _has_descriptor(weight_KD)
    tiles = tiles if use_tma else without_descriptors(tiles)
    x: Any = TensorDescriptor.from_tensor(features_BD, [tiles.rows, tiles.features]) if use_tma else features_BD
    w: Any = TensorDescriptor.from_tensor(weight_KD, [tiles.classes, tiles.features]) if use_tma else weight_KD
    grid = (triton.cdiv(num_buffer_rows, tiles.rows) * triton.cdiv(num_classes, tiles.classes),)
    kernels.class_tiles_kernel[grid](
        *(x, w, bias_K, labels_LB, *reference),
        *(unused if exp_RK is None else _padded(exp_RK), unused if moment_BK is None else _padded(moment_BK)),
        *(
            max_CB,
            sum_CB,
            moment_CB,
            logits_CB,
            label_stats_FB,
            label_stats_FB[num_labels],
            label_stats_FB[num_labels + 1],
        ),
        *(num_rows, num_buffer_rows, num_classes, features_BD.shape[1], start),
        *(features_BD.stride(0), weight_KD.stride(0), _row_stride(exp_RK), _row_stride(moment_BK)),
        ROWS=tiles.rows,
        CLASSES=tiles.classes,
        FEATURES=tiles.features,
        HAS_BIAS=bias_K is not None,
        PAIR=num_labels == 2,
        STATISTICS=statistics is not None,
        KEEP=exp_RK is not None,
        HAS_BASE=len(reference.base_B) > 0,
        MOMENT=statistics is not None and len(moment_CB) > 0,
        KEEP_MOMENT=moment_BK is not None,
        SUM_LOGITS=statistics is not None and len(logits_CB) > 0,
        TMA=use_tma,
        LIMIT=OVERSHOOT[features_BD.dtype],
        PRECISION=matmul_precision(features_BD.dtype),
        EMULATED=EMULATED,
        **compile_options(tiles),
    )


def merge_tiles(
    operands: Operands,
    shift_B: Tensor,
    statistics: TileStatistics,
    out: tuple[Tensor, Tensor],
    tiles: TileConfig,
    is_first: bool,
) -> None:
    """Merge a slab's tiles into the rows' state, the first of `out`; the second gets the shift that follows from it."""
    max_CB, sum_CB, moment_CB, logits_CB, label_stats_FB = statistics
    num_tiles, num_rows = max_CB.shape
    num_labels = len(operands.labels_LB)
    row_kernels.merge_tiles_kernel[(triton.cdiv(num_rows, MERGE_TILE["ROWS"]),)](
        *(max_CB, sum_CB, moment_CB, logits_CB, shift_B, operands.labels_LB),
        *(label_stats_FB[num_labels], label_stats_FB[num_labels + 1], *out),
        *(num_rows, num_tiles, len(operands.weight_KD), operands.start),
        FIRST=is_first,
        MOMENT=len(moment_CB) > 0,
        SUM_LOGITS=len(logits_CB) > 0,
        TILE_CLASSES=tiles.classes,
        LIMIT=OVERSHOOT[operands.features_BD.dtype],
        **MERGE_TILE,
    )


def align_tiles(
    buffers: SlabBuffers,
    reference: ExpReference,
    statistics: TileStatistics,
    lift_B: Tensor,
    num_classes: int,
    tiles: TileConfig,
) -> None:
    """Rescale a slab's exponentials and moments to the rows' common lift, where a tile's own differs."""
    exp_RK, moment_BK = buffers
    assert exp_RK is not None
    num_rows = len(reference.shift_B)
    grid = (triton.cdiv(num_rows, ALIGN_TILE["ROWS"]) * triton.cdiv(num_classes, tiles.classes),)
    row_kernels.align_tiles_kernel[grid](
        *(exp_RK, exp_RK if moment_BK is None else moment_BK, reference.base_B, statistics.max_CB),
        *(reference.shift_B, lift_B, num_rows, num_classes, exp_RK.stride(0), _row_stride(moment_BK)),
        HAS_BASE=len(reference.base_B) > 0,
        MOMENT=moment_BK is not None,
        LIMIT=OVERSHOOT[exp_RK.dtype],
        CLASSES=tiles.classes,
        EMULATED=EMULATED,
        **ALIGN_TILE,
    )


class LabelTerms(NamedTuple):
    """Gradient terms of the labels' own classes, which the sums over all rows leave out."""

    labels_LB: Tensor
    gradient_LB: Tensor
    """dL/dz at the labels, float32."""
    start: int
    """Label of the first class of the slab."""


def add_label_rows(gradient_KD: Tensor, sums_ND: Tensor | None, features_BD: Tensor, terms: LabelTerms) -> None:
    """Add the labels' terms to the weight's gradient; `sums_ND` are the unrounded rows of all labels, if it is narrow."""
    num_rows, num_features = features_BD.shape
    grid = (terms.labels_LB.numel(), triton.cdiv(num_features, LABEL_TILE["FEATURES"]))
    row_kernels.add_label_rows_kernel[grid](
        *(gradient_KD, gradient_KD if sums_ND is None else sums_ND, features_BD, terms.labels_LB, terms.gradient_LB),
        *(num_rows, terms.labels_LB.numel(), len(gradient_KD), num_features, terms.start),
        *(gradient_KD.stride(0), features_BD.stride(0)),
        SUMS_GIVEN=sums_ND is not None,
        EMULATED=EMULATED,
        **LABEL_TILE,
    )


def class_sums(gradient_K: Tensor, exp_RK: Tensor, base_B: Tensor, scale_B: Tensor, terms: LabelTerms) -> None:
    """Write the bias's gradient of a slab."""
    row_kernels.class_sums_kernel[(triton.cdiv(len(gradient_K), SUM_TILE["CLASSES"]),)](
        *(gradient_K, exp_RK, base_B, scale_B, terms.labels_LB, terms.gradient_LB),
        *(len(scale_B), terms.labels_LB.numel(), len(gradient_K), terms.start, exp_RK.stride(0)),
        HAS_BASE=len(base_B) > 0,
        EMULATED=EMULATED,
        **SUM_TILE,
    )


def _has_descriptor(matrix: Tensor) -> bool:
    """Whether a tensor-memory descriptor can describe it: rows at multiples of 16 bytes, one after another."""
    is_aligned = matrix.stride(0) * matrix.element_size() % 16 == 0 and matrix.data_ptr() % 16 == 0
    return is_aligned and matrix.stride(0) >= matrix.shape[1] > 0


def _padded(buffer: Tensor) -> Tensor:
    """A slab's buffer with the classes to which it is padded."""
    return buffer.as_strided((len(buffer), pad_classes(buffer.shape[1])), buffer.stride())


def _row_stride(matrix: Tensor | None) -> int:
    return 0 if matrix is None else matrix.stride(0)


def with_dense_rows(matrix: Tensor) -> Tensor:
    """The matrix with the elements of a row side by side, as all kernels read them."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
