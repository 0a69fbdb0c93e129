"""The local stages on a CUDA GPU: Triton for the pass over the logits, the library's matrix products for the rest.

Three products, 6·B·K·D operations, is the least that the two routes take, and three are made:

1. `class_tiles`: logits of a tile X Wᵀ, and while they are in registers its exponentials E, 0 at the labels, stored in the
   features' dtype, and each row's largest logit, sum and label logits. `merge_tiles` merges the tiles in a fixed order.
2. U = E·W for the features' gradients, forward, by torch.bmm.
3. V = Eᵀ(v∘x) for the weight's gradient, backward, by torch.bmm; `add_label_rows` adds the labels' terms in float32, of labels
   in ascending order, so that equal ones stand side by side.

All heads of a call share the launches of each (`rlpheads.kernels.gpu.heads`), whole ones and those whose classes are sharded;
the stages here serve one class range, whose gradients something else than `.grad` takes.

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
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.gpu.slab_plan import NUM_STATE, PassOutputs, SlabPlan, plan_slabs
from rlpheads.kernels.operators import register_named_operator
from rlpheads.kernels.rows.partials import ClassRange, Exponentials, LogitGradient, Needs, Partials, Products

if TYPE_CHECKING:
    from rlpheads.kernels.gpu.triton_launch import Operands
    from rlpheads.kernels.gpu.triton_passes import ForwardPass

OPERAND_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Types of the matrix products; the features' own is taken."""

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's interpreter, and a CPU, stand for a GPU. Triton decides that at its import, too."""


def unsupported_reason(features_BD: Tensor) -> str | None:
    """Why Triton cannot run on these features (dtype, device, compute capability); None if it can."""
    device = features_BD.device
    if features_BD.dtype not in OPERAND_DTYPES:
        return f"multiplies float16, bfloat16 or float32; the features are {features_BD.dtype}"
    if device.type == "cpu" and INTERPRETS:
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
    return heads_partials(HeadsInMemory(features_BD, head.weight_KD, head.bias_K, labels_LB, head.start), needs)


def heads_partials(heads: "HeadsInMemory", needs: Needs) -> tuple[Partials, Products, Exponentials]:
    """`local_partials` of all heads' rows: the sum of each head's weights lies one after another in `weight_sum_D`."""
    found = _partials_op(HeadsPassArguments(heads, needs))
    state_SR, label_stats_FR, exp_weight_RD, moment_weight_RD, weight_sum_D, kept_RK, shift_CR, base_CR = found
    _, sum_R, moment_R, logits_R, before_R, after_R = state_SR
    partials = Partials(shift_CR[-1], sum_R, moment_R, logits_R, label_stats_FR[:-2], before_R, after_R)
    return (
        partials,
        Products(exp_weight_RD, moment_weight_RD, weight_sum_D, heads.features_RD.dtype),
        Exponentials(kept_RK, shift_CR, base_CR),
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
    bias_dtype = head.weight_KD.dtype if head.bias_K is None else head.bias_K.dtype
    gradients = class_gradients(
        HeadsInMemory(features_BD, head.weight_KD, head.bias_K, labels_LB, head.start),
        exponentials,
        gradient,
        (head.weight_KD.dtype, bias_dtype),
        wanted,
    )
    return gradients[0] if wanted[0] else None, gradients[1] if wanted[1] else None


class HeadsInMemory(NamedTuple):
    """`triton_launch.Operands` without Triton: heads one after another in all dimensions of rows and classes."""

    features_RD: Tensor
    weight_KD: Tensor
    bias_K: Tensor | None
    labels_LR: Tensor
    start: int = 0
    num_heads: int = 1

    @property
    def num_rows(self) -> int:
        """Rows of one head."""
        return self.labels_LR.shape[1] // self.num_heads

    def plan(self, memory_budget: int | None, outputs: PassOutputs) -> SlabPlan:
        """How the pass over each head's classes is cut into slabs."""
        num_classes = len(self.weight_KD) // self.num_heads
        return plan_slabs(self.num_rows, num_classes, self.features_RD.dtype.itemsize, memory_budget, outputs)


def class_gradients(
    heads: HeadsInMemory,
    exponentials: Exponentials,
    gradient: LogitGradient,
    dtypes: tuple[torch.dtype, torch.dtype],
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of all heads' weights and biases, one head after another, in these dtypes; empty where they are not wanted."""
    return _class_gradients_op(HeadsGradientArguments(heads, exponentials, gradient, *dtypes, *wanted))


# --------------------------------------------------------------------------------------------------------- the operators


class HeadsPassArguments(NamedTuple):
    """What the operator of the first stage takes."""

    heads: HeadsInMemory
    needs: Needs


def _compute_partials(given: HeadsPassArguments) -> list[Tensor]:
    heads, (plan, outputs) = given.heads, planned(*given)
    if heads.labels_LR.shape[1] == 0:
        return [shape.zeros(heads.features_RD) for shape in pass_shapes(heads, plan, outputs)]
    state_SR, label_stats_FR, sums, *exponentials = run_forward_pass(heads, plan, outputs)
    weight_sum_D = sums.weight_sum_HD.flatten().clone()  # of a buffer of its own, as a compiler is told
    return [state_SR, label_stats_FR, sums.exp_weight_RD, sums.moment_weight_RD, weight_sum_D, *exponentials]


def _shape_of_partials(given: HeadsPassArguments) -> list[Tensor]:
    return [shape.empty(given.heads.features_RD) for shape in pass_shapes(given.heads, *planned(*given))]


def planned(heads: HeadsInMemory, needs: Needs) -> tuple[SlabPlan, PassOutputs]:
    """Return how the heads' classes are cut, and what is computed of them."""
    outputs = PassOutputs.of(needs.regularizer, products=needs.feature_gradient)
    return heads.plan(needs.memory_budget if needs.class_gradients else None, outputs), outputs


def run_forward_pass(heads: HeadsInMemory, plan: SlabPlan, outputs: PassOutputs) -> "ForwardPass":
    """`triton_passes.forward_pass` with the tiles of the device."""
    from rlpheads.kernels.gpu import triton_passes
    from rlpheads.kernels.gpu.triton_launch import tiles_for

    operands = operands_of(heads)
    return triton_passes.forward_pass(
        operands, plan, outputs, tiles_for(operands, has_base=outputs.has_base or outputs.moments)
    )


def operands_of(heads: HeadsInMemory) -> "Operands":
    """The heads as the launchers take them: biases and labels contiguous."""
    from rlpheads.kernels.gpu.triton_launch import Operands

    bias_K = None if heads.bias_K is None else heads.bias_K.contiguous()
    return Operands(*heads._replace(bias_K=bias_K, labels_LR=heads.labels_LR.contiguous()))


class Shape(NamedTuple):
    """Sizes and dtype of a tensor that an operator returns."""

    sizes: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def empty(self, like: Tensor) -> Tensor:
        """Uninitialised, on the device of `like`."""
        return like.new_empty(self.sizes, dtype=self.dtype)

    def zeros(self, like: Tensor) -> Tensor:
        """Zeros there."""
        return like.new_zeros(self.sizes, dtype=self.dtype)


def pass_shapes(heads: HeadsInMemory, plan: SlabPlan, outputs: PassOutputs) -> list[Shape]:
    """State, label statistics, the three products, kept exponentials, shifts and bases of a pass over the classes."""
    (labels_a_row, num_rows), num_features = heads.labels_LR.shape, heads.features_RD.shape[1]
    return [
        Shape((NUM_STATE, num_rows)),
        Shape((labels_a_row + 2, num_rows)),
        Shape((num_rows if outputs.products else 0, num_features)),
        Shape((num_rows if outputs.products and outputs.moments else 0, num_features)),
        Shape((heads.num_heads * num_features if outputs.products and outputs.sum_logits else 0,)),
        Shape((heads.num_heads * plan.buffer_rows, plan.buffer_classes), heads.features_RD.dtype),
        Shape((plan.num_slabs, num_rows)),
        Shape((plan.num_slabs, num_rows if outputs.has_base else 0)),
    ]


class HeadsGradientArguments(NamedTuple):
    """What the operator of the last stage takes: heads, kept exponentials, dL/dz, types of the gradients, which are wanted."""

    heads: HeadsInMemory
    exponentials: Exponentials
    gradient: LogitGradient
    weight_dtype: torch.dtype
    bias_dtype: torch.dtype
    for_weight: bool
    for_bias: bool


def _compute_class_gradients(given: HeadsGradientArguments) -> tuple[Tensor, Tensor]:
    from rlpheads.kernels.gpu import triton_passes

    gradients = _empty_gradients(given)
    if given.heads.labels_LR.shape[1] == 0:
        return gradients[0].zero_(), gradients[1].zero_()
    operands, outputs = operands_of(given.heads), triton_passes.ClassGradients(*gradients)
    triton_passes.backward_pass(operands, given.exponentials, given.gradient.contiguous(), outputs)
    return gradients


def _empty_gradients(given: HeadsGradientArguments) -> tuple[Tensor, Tensor]:
    """Uninitialised gradients of weights and biases, empty where they are not wanted."""
    num_classes, num_features = given.heads.weight_KD.shape
    new_empty = given.heads.weight_KD.new_empty
    return (
        new_empty(num_classes if given.for_weight else 0, num_features, dtype=given.weight_dtype),
        new_empty(num_classes if given.for_bias else 0, dtype=given.bias_dtype),
    )


_partials_op = register_named_operator("triton_partials", _compute_partials, _shape_of_partials)
_class_gradients_op = register_named_operator("triton_class_gradients", _compute_class_gradients, _empty_gradients)
