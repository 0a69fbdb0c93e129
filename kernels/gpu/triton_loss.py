"""The local stages on a CUDA GPU: Triton for the pass over the logits, the library's matrix products for the rest.

Three products, 6·B·K·D operations, is the least that the two routes take, and three are made:

1. `class_tiles`: logits of a tile X Wᵀ, and while they are in registers its exponentials E, 0 at the labels, stored in the
   features' dtype, and each row's largest logit, sum and label logits. `merge_tiles` merges the tiles in a fixed order.
2. U = E·W for the features' gradients, forward, by torch.mm.
3. V = Eᵀ(v∘x) for the weight's gradient, backward, by torch.mm; `add_label_rows` adds the labels' terms in float32.

The kernels use no atomic operation: two runs give the same bits. With a `memory_budget` too small for E, and for the
moments of `entropy`, the classes are taken slab by slab, and backward computes E again: four products.

**The shift.** Rows of one matrix product need one scale, so that E cannot be taken with a shift of each tile's own, as on
the CPU. A static shift s, the largest of the row's first 256 logits (a guess), serves every tile whose exponentials stay
below 2^64 under it (2^15 in float16). A tile that would exceed this raises its shift by a whole number of powers of two, a
*lift*, and `align_tiles`, whose programs otherwise return at once, multiplies the tiles of lower lift by an exact power of
two. So no logit overflows, nothing is computed twice, and the host never asks. The label is in no maximum and in no sum:
its lead over the others, whatever its size, lifts nothing.

**Near chance** the gradients of `uniform` and `entropy` are small differences from 1/K, which E rounded to 8 bits would
drown. For these two kinds a row whose first logits lie within 1 of each other is stored as E − 1 with s = log-mean-exp:
rounding is then relative to the difference. The rest, Σ W, comes from a row of ones in the same product. Other rows and
kinds store E itself. Far from chance the gradient of `entropy` is a small difference again, unless the offset z − s of the
largest logit is exactly 0: a pass for the statistics alone finds s first, which makes that kind's products five.

**Dtypes.** The operands of all products have the features' dtype; sums, statistics and the labels' own terms are float32,
and gradients are rounded once to the dtype of what they belong to. float16 has too few exponents for v∘x, so its power of
two is taken out, for a second pass over the gradient: bfloat16 is the faster.

Labels by (table, index, draw) are read by one launch for all heads (`label_source`), before all else: B numbers a head,
which every later kernel reads.
"""

import os
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.gpu.slab_plan import NUM_STATE, PassOutputs, SlabPlan, plan_slabs
from rlpheads.kernels.rows.partials import ClassRange, Exponentials, LogitGradient, Needs, Partials, Products

OPERAND_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Types of the matrix products; the features' own is taken."""


def unsupported_reason(features_BD: Tensor) -> str | None:
    """Why Triton cannot run on these features (dtype, device, compute capability); None if it can."""
    device = features_BD.device
    if features_BD.dtype not in OPERAND_DTYPES:
        return f"multiplies float16, bfloat16 or float32; the features are {features_BD.dtype}"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return f"runs on a CUDA GPU; the features are on {device}"
    if find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"needs compute capability 8.0 or newer; {device} has {major}.{minor}"
    return None


def local_partials(
    features_BD: Tensor, head: ClassRange, labels_LB: Tensor, needs: Needs
) -> tuple[Partials, Products, Exponentials]:
    """First stage: reduce a class range to `Partials`, and keep what its own gradients need."""
    state_SB, label_stats_FB, *products, kept_RK, shift_CB, base_CB = _partials_op(
        features_BD,
        head.weight_KD,
        head.bias_K,
        labels_LB,
        head.start,
        needs.memory_budget if needs.class_gradients else None,
        needs.feature_gradient,
        needs.regularizer == "entropy",
        needs.regularizer == "uniform",
    )
    _, sum_B, moment_B, logits_B, before_B, after_B = state_SB
    partials = Partials(shift_CB[-1], sum_B, moment_B, logits_B, label_stats_FB[:-2], before_B, after_B)
    return (
        partials,
        Products(*products)._replace(operand_dtype=features_BD.dtype),
        Exponentials(kept_RK, shift_CB, base_CB),
    )


def local_class_gradients(
    features_BD: Tensor,
    head: ClassRange,
    labels_LB: Tensor,
    exponentials: Exponentials,
    gradient: LogitGradient,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Last stage: gradients of the range's weight and bias, each None unless wanted."""
    weight_gradient_KD, bias_gradient_K = _class_gradients_op(
        features_BD, head.weight_KD, head.bias_K, labels_LB, head.start, *exponentials, *gradient, *wanted
    )
    return weight_gradient_KD if wanted[0] else None, bias_gradient_K if wanted[1] else None


def _slab_plan(
    features_BD: Tensor, num_classes: int, memory_budget: int | None, flags: tuple[bool, bool, bool]
) -> tuple[SlabPlan, PassOutputs]:
    outputs = PassOutputs(*flags)
    return plan_slabs(len(features_BD), num_classes, features_BD.dtype.itemsize, memory_budget, outputs), outputs


@torch.library.custom_op("rlpheads::triton_partials", mutates_args=(), device_types=("cpu", "cuda"))
def _partials_op(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    memory_budget: int | None,
    products: bool,
    moments: bool,
    sum_logits: bool,
) -> list[Tensor]:
    from rlpheads.kernels.gpu import triton_passes
    from rlpheads.kernels.gpu.triton_launch import Operands, tiles_for

    plan, outputs = _slab_plan(features_BD, len(weight_KD), memory_budget, (products, moments, sum_logits))
    if len(features_BD) == 0:
        return [shape.zeros(features_BD) for shape in _output_shapes(features_BD, labels_LB, plan, outputs)]
    operands = Operands(features_BD, weight_KD, _contiguous(bias_K), labels_LB.contiguous(), start)
    tiles = tiles_for(operands, has_base=outputs.has_base or outputs.moments)
    return triton_passes.forward_pass(operands, plan, outputs, tiles)


def _contiguous(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


class _Shape(NamedTuple):
    sizes: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def empty(self, like: Tensor) -> Tensor:
        return like.new_empty(self.sizes, dtype=self.dtype)

    def zeros(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.sizes, dtype=self.dtype)


def _output_shapes(features_BD: Tensor, labels_LB: Tensor, plan: SlabPlan, outputs: PassOutputs) -> list[_Shape]:
    """What `_partials_op` returns: state, label statistics, the three products, kept exponentials, shifts, bases."""
    num_rows, num_features = features_BD.shape
    return [
        _Shape((NUM_STATE, num_rows)),
        _Shape((len(labels_LB) + 2, num_rows)),
        _Shape((num_rows * outputs.products, num_features)),
        _Shape((num_rows * (outputs.products and outputs.moments), num_features)),
        _Shape((num_features * (outputs.products and outputs.sum_logits),)),
        _Shape((plan.buffer_rows, plan.buffer_classes), features_BD.dtype),
        _Shape((plan.num_slabs, num_rows)),
        _Shape((plan.num_slabs, num_rows * outputs.has_base)),
    ]


@_partials_op.register_fake
def _(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    memory_budget: int | None,
    products: bool,
    moments: bool,
    sum_logits: bool,
) -> list[Tensor]:
    plan, outputs = _slab_plan(features_BD, len(weight_KD), memory_budget, (products, moments, sum_logits))
    return [shape.empty(features_BD) for shape in _output_shapes(features_BD, labels_LB, plan, outputs)]


@torch.library.custom_op("rlpheads::triton_class_gradients", mutates_args=(), device_types=("cpu", "cuda"))
def _class_gradients_op(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    kept_RK: Tensor,
    shift_CB: Tensor,
    base_CB: Tensor,
    scale_CB: Tensor,
    label_LB: Tensor,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor]:
    from rlpheads.kernels.gpu import triton_passes
    from rlpheads.kernels.gpu.triton_launch import Operands

    gradients = _empty_gradients(weight_KD, bias_K, for_weight, for_bias)
    if len(features_BD) == 0:
        return gradients[0].zero_(), gradients[1].zero_()
    triton_passes.backward_pass(
        Operands(features_BD, weight_KD, _contiguous(bias_K), labels_LB.contiguous(), start),
        Exponentials(kept_RK, shift_CB, base_CB),
        LogitGradient(scale_CB.contiguous(), label_LB.contiguous()),
        triton_passes.ClassGradients(*gradients),
    )
    return gradients


def _empty_gradients(
    weight_KD: Tensor, bias_K: Tensor | None, for_weight: bool, for_bias: bool
) -> tuple[Tensor, Tensor]:
    """Uninitialised gradients, each in the dtype of what it belongs to; empty where it is not wanted."""
    num_classes, num_features = weight_KD.shape
    bias = weight_KD if bias_K is None else bias_K
    return weight_KD.new_empty(num_classes * for_weight, num_features), bias.new_empty(num_classes * for_bias)


@_class_gradients_op.register_fake
def _(
    features_BD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    labels_LB: Tensor,
    start: int,
    kept_RK: Tensor,
    shift_CB: Tensor,
    base_CB: Tensor,
    scale_CB: Tensor,
    label_LB: Tensor,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor]:
    return _empty_gradients(weight_KD, bias_K, for_weight, for_bias)
