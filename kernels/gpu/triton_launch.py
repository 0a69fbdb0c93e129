"""Launchers of the pass over the classes: one function a kernel, which sets its grid, tiles and flags; no host synchronisation.

Each launch serves all heads of its operands, whose rows, classes and exponentials lie one head after another.

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
from rlpheads.kernels.gpu.checked_launch import Strided, launch_kernel
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
EXACT_TILE = {"ROWS": 128, "num_warps": 4}
ALIGN_TILE = {"ROWS": 64, "num_warps": 8}


class Operands(NamedTuple):
    """Features, and a range of the classes of one or several heads; the kernels take both in one dtype.

    Heads lie one after another in every dimension of rows R and classes; each has B = R / num_heads rows.
    """

    features_RD: Tensor
    """Of each head, or (B, D) that all heads read."""
    weight_KD: Tensor
    bias_K: Tensor | None
    labels_LR: Tensor
    start: int
    """Label of the first class of each head's range."""
    num_heads: int = 1

    @property
    def num_rows(self) -> int:
        """Rows of one head."""
        return self.labels_LR.shape[1] // self.num_heads

    @property
    def num_classes(self) -> int:
        """Classes of one head's range."""
        return len(self.weight_KD) // self.num_heads

    @property
    def rows_apart(self) -> int:
        """Rows between the features of two heads: 0 where all heads read the same ones."""
        return 0 if len(self.features_RD) == self.num_rows else self.num_rows

    def narrow(self, start: int, stop: int) -> "Operands":
        """Slice the classes [start, stop); several heads have one slab."""
        if stop - start == self.num_classes:
            return self
        assert self.num_heads == 1
        bias_K = None if self.bias_K is None else self.bias_K[start:stop]
        return self._replace(weight_KD=self.weight_KD[start:stop], bias_K=bias_K, start=self.start + start)

    def cast(self, features_RD: Tensor) -> "Operands":
        """The same with these features, and the weight in their dtype; both with contiguous rows."""
        weight_KD = self.weight_KD.to(features_RD.dtype)
        return self._replace(features_RD=with_dense_rows(features_RD), weight_KD=with_dense_rows(weight_KD))


class ExpReference(NamedTuple):
    """What a row's exponentials are relative to: E = e^{z − shift} − base."""

    shift_R: Tensor
    base_R: Tensor
    """0 or 1, or that halved with every lift; empty where every base is 0."""


class TileStatistics(NamedTuple):
    """Softmax statistics of a slab's C tiles, all float32."""

    max_CR: Tensor
    sum_CR: Tensor
    moment_CR: Tensor
    logits_CR: Tensor
    label_stats_FR: Tensor
    """Logit of each label, then the largest logits before and after the first label in its own tile."""


class SlabBuffers(NamedTuple):
    """Where a slab's exponentials and moments go, each (rows, classes); None where they are not kept."""

    exp_RK: Tensor | None
    moment_RK: Tensor | None = None


class SlabState(NamedTuple):
    """What rows carry from slab to slab, and the shift and base of this slab's exponentials."""

    state_SR: Tensor
    shift_R: Tensor
    base_R: Tensor


def tiles_for(operands: Operands, *, has_base: bool) -> TileConfig:
    """Tiles for the device that the operands are on: those that were measured there for these shapes, if there are any.

    Raises:
        ValueError: the file of measured tiles cannot be read.
    """
    case = tuning_case(operands, has_base=has_base)
    return select_tiles(case, candidate_tiles(operands.features_RD, case))


def tuning_case(operands: Operands, *, has_base: bool) -> TuningCase:
    """Key of the autotuned tiles of a pass over the operands' classes; `has_base` where it has bases or moments."""
    features_BD = operands.features_RD
    name = str(features_BD.dtype).removeprefix("torch.")
    return TuningCase(
        device="Triton's interpreter" if EMULATED else torch.cuda.get_device_name(features_BD.device),
        triton=triton.__version__,
        operands=f"{name} by {matmul_precision(features_BD.dtype)}" if features_BD.dtype == torch.float32 else name,
        rows=operands.num_rows,
        features=features_BD.shape[1],
        classes=operands.num_classes,
        pair=len(operands.labels_LR) == 2,
        base=has_base,
        bias=operands.bias_K is not None,
    )


def candidate_tiles(features_BD: Tensor, case: TuningCase) -> tuple[TileConfig, ...]:
    """Tiles that a case can have, on the features' device; the first are taken where none were measured."""
    if EMULATED:
        return INTERPRETED_TILES
    major, minor = torch.cuda.get_device_capability(features_BD.device)
    chip = 10 * major + minor
    return chip_tiles(chip, features_BD.dtype, case.rows, pair=case.pair, base=case.base, bias=case.bias)


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
    launch_kernel(
        row_kernels.gather_labels_kernel,
        (triton.cdiv(num_rows, GATHER_TILE["ROWS"]), num_sources),
        *(tuple(map(Strided, rows)), tuple(None if index_B is None else index_B.contiguous() for index_B in indices)),
        *(tuple(row_N.stride(0) for row_N in rows), tuple(map(len, rows)), labels_SB, num_rows),
        SOURCES=num_sources,
        **GATHER_TILE,
    )


def row_shifts(operands: Operands, label_stats_FR: Tensor, has_base: bool) -> ExpReference:
    """Guess each row's softmax shift from its head's first classes, and set `label_stats_FR` to −∞."""
    features_RD, weight_KD = operands.features_RD, operands.weight_KD
    num_rows = operands.num_rows
    shift_R = label_stats_FR.new_empty(label_stats_FR.shape[1])
    base_R = shift_R.new_empty(len(shift_R) if has_base else 0)
    launch_kernel(
        row_kernels.row_shifts_kernel,
        (triton.cdiv(num_rows, SHIFT_TILE["ROWS"]), operands.num_heads),
        *(Strided(features_RD), Strided(weight_KD), operands.bias_K, operands.labels_LR),
        *(shift_R, base_R, label_stats_FR),
        *(num_rows, min(operands.num_classes, FIRST_CLASSES), features_RD.shape[1], operands.start),
        *(operands.rows_apart, operands.num_classes, features_RD.stride(0), weight_KD.stride(0)),
        HAS_BIAS=operands.bias_K is not None,
        PAIR=len(operands.labels_LR) == 2,
        HAS_BASE=has_base,
        PRECISION=matmul_precision(features_RD.dtype),
        EMULATED=EMULATED,
        **SHIFT_TILE,
    )
    return ExpReference(shift_R, base_R)


def exact_shifts(reference: ExpReference, state_SR: Tensor) -> None:
    """Put the rows' largest logits, which a pass has found, in the place of the guessed shifts, unless a row is near chance."""
    num_rows = len(reference.shift_R)
    launch_kernel(
        row_kernels.exact_shifts_kernel,
        (triton.cdiv(num_rows, EXACT_TILE["ROWS"]),),
        *(reference.shift_R, reference.base_R, state_SR, num_rows),
        **EXACT_TILE,
    )


def allocate_statistics(
    operands: Operands, tiles: TileConfig, outputs: PassOutputs, label_stats_FR: Tensor
) -> TileStatistics:
    """Uninitialised statistics of a slab's tiles; `label_stats_FR` is that of all slabs."""
    shape = triton.cdiv(operands.num_classes, tiles.classes), label_stats_FR.shape[1]
    max_CR, sum_CR = label_stats_FR.new_empty(2, *shape)
    moment_CR, logits_CR = (label_stats_FR.new_empty(shape if is_wanted else 0) for is_wanted in outputs[1:])
    return TileStatistics(max_CR, sum_CR, moment_CR, logits_CR, label_stats_FR)


def class_tiles(
    operands: Operands,
    reference: ExpReference,
    buffers: SlabBuffers,
    tiles: TileConfig,
    statistics: TileStatistics | None = None,
) -> None:
    """Compute the exponentials of a slab, and, if `statistics` is given, the statistics of its tiles."""
    features_RD, weight_KD, bias_K, labels_LR, start, num_heads = operands
    num_rows, num_classes, num_labels = operands.num_rows, operands.num_classes, len(labels_LR)
    exp_RK, moment_RK = buffers
    num_kept_rows = num_rows if exp_RK is None else len(exp_RK) // num_heads
    unused = reference.shift_R
    moment_CR, logits_CR = (unused[:0],) * 2 if statistics is None else statistics[2:4]
    out = (unused,) * 7 if statistics is None else _written_statistics(statistics, num_labels)
    if not (_has_descriptor(features_RD) and _has_descriptor(weight_KD)):
        tiles = without_descriptors(tiles)
    use_tma = tiles.tma
    x: Any = (
        TensorDescriptor.from_tensor(features_RD, [tiles.rows, tiles.features]) if use_tma else Strided(features_RD)
    )
    w: Any = TensorDescriptor.from_tensor(weight_KD, [tiles.classes, tiles.features]) if use_tma else Strided(weight_KD)
    grid = (triton.cdiv(num_kept_rows, tiles.rows) * triton.cdiv(num_classes, tiles.classes), num_heads)
    launch_kernel(
        kernels.class_tiles_kernel,
        grid,
        *(x, w, bias_K, labels_LR, *reference),
        *(unused if each_RK is None else Strided(_padded(each_RK)) for each_RK in buffers),
        *out,
        *(num_rows, num_kept_rows, num_classes, features_RD.shape[1], start),
        *(
            operands.rows_apart,
            num_classes,
            features_RD.stride(0),
            weight_KD.stride(0),
            _row_stride(exp_RK),
            _row_stride(moment_RK),
        ),
        ROWS=tiles.rows,
        CLASSES=tiles.classes,
        FEATURES=tiles.features,
        HAS_BIAS=bias_K is not None,
        PAIR=num_labels == 2,
        STATISTICS=statistics is not None,
        KEEP=exp_RK is not None,
        HAS_BASE=len(reference.base_R) > 0,
        MOMENT=len(moment_CR) > 0,
        KEEP_MOMENT=moment_RK is not None,
        SUM_LOGITS=len(logits_CR) > 0,
        TMA=use_tma,
        LIMIT=OVERSHOOT[features_RD.dtype],
        PRECISION=matmul_precision(features_RD.dtype),
        EMULATED=EMULATED,
        **compile_options(tiles),
    )


def merge_tiles(
    operands: Operands,
    reference: ExpReference,
    statistics: TileStatistics,
    out: SlabState,
    tiles: TileConfig,
    is_first: bool,
) -> None:
    """Merge a slab's tiles into the rows' state, and write the shift and base that follow from it."""
    max_CR, sum_CR, moment_CR, logits_CR, label_stats_FR = statistics
    num_tiles, num_rows = max_CR.shape
    num_labels = len(operands.labels_LR)
    launch_kernel(
        row_kernels.merge_tiles_kernel,
        (triton.cdiv(num_rows, MERGE_TILE["ROWS"]),),
        *(max_CR, sum_CR, moment_CR, logits_CR, reference.shift_R, operands.labels_LR),
        *(label_stats_FR[num_labels], label_stats_FR[num_labels + 1], reference.base_R, *out),
        *(num_rows, num_tiles, operands.num_classes, operands.start),
        FIRST=is_first,
        MOMENT=len(moment_CR) > 0,
        SUM_LOGITS=len(logits_CR) > 0,
        HAS_BASE=len(out.base_R) > 0,
        TILE_CLASSES=tiles.classes,
        LIMIT=OVERSHOOT[operands.features_RD.dtype],
        **MERGE_TILE,
    )


def align_tiles(
    operands: Operands,
    buffers: SlabBuffers,
    reference: ExpReference,
    statistics: TileStatistics,
    lift_R: Tensor,
    tiles: TileConfig,
) -> None:
    """Rescale a slab's exponentials and moments to the rows' common lift, where a tile's own differs."""
    exp_RK, moment_RK = buffers
    assert exp_RK is not None
    num_rows, num_classes, num_heads = operands.num_rows, operands.num_classes, operands.num_heads
    grid = (triton.cdiv(num_rows, ALIGN_TILE["ROWS"]) * triton.cdiv(num_classes, tiles.classes), num_heads)
    launch_kernel(
        row_kernels.align_tiles_kernel,
        grid,
        *(Strided(exp_RK), Strided(exp_RK if moment_RK is None else moment_RK)),
        *(reference.base_R, statistics.max_CR, reference.shift_R),
        *(lift_R, num_rows, len(exp_RK) // num_heads, num_classes, exp_RK.stride(0), _row_stride(moment_RK)),
        HAS_BASE=len(reference.base_R) > 0,
        MOMENT=moment_RK is not None,
        LIMIT=OVERSHOOT[exp_RK.dtype],
        CLASSES=tiles.classes,
        EMULATED=EMULATED,
        **ALIGN_TILE,
    )


def _written_statistics(statistics: TileStatistics, num_labels: int) -> tuple[Tensor, ...]:
    """What `class_tiles` writes: the tiles', then the label logits, the largest logits before and after the label."""
    *of_tiles, label_stats_FR = statistics
    return (*of_tiles, label_stats_FR, label_stats_FR[num_labels], label_stats_FR[num_labels + 1])


def _has_descriptor(matrix: Tensor) -> bool:
    """Whether a tensor-memory descriptor can describe it: rows at multiples of 16 bytes, one after another."""
    is_aligned = matrix.stride(0) * matrix.element_size() % 16 == 0 and matrix.data_ptr() % 16 == 0
    return is_aligned and matrix.stride(0) >= matrix.shape[1] > 0 and matrix.stride(1) == 1


def _padded(buffer: Tensor) -> Tensor:
    """A slab's buffer with the classes to which it is padded."""
    return buffer.as_strided((len(buffer), pad_classes(buffer.shape[1])), buffer.stride())


def _row_stride(matrix: Tensor | None) -> int:
    return 0 if matrix is None else matrix.stride(0)


def with_dense_rows(matrix: Tensor) -> Tensor:
    """The matrix with the elements of a row side by side, as all kernels read them."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
