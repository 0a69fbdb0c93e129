"""Whole heads on a CUDA GPU, all in the same launches: the loss of several heads by `impl="triton"`.

The stages of `rlpheads.kernels.gpu.triton_loss` serve class ranges, whose statistics must be exchanged between them. A head
that is held whole needs no exchange: one operator here goes from features and weights to every value and coefficient, and
heads are a dimension of each launch. Heads are taken in groups (`rlpheads.kernels.gpu.heads.head_groups`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.first_derivative import refuse_second_derivative, save_with_anchor
from rlpheads.kernels.gpu.heads.head_groups import (
    GroupGradient,
    Held,
    LastStage,
    LinearHeads,
    attach_group_classes,
    group_heads,
)
from rlpheads.kernels.gpu.heads.kept_operands import KeptOperands
from rlpheads.kernels.gpu.slab_plan import PassOutputs
from rlpheads.kernels.gpu.triton_loss import HeadsInMemory, Shape, operands_of, pass_shapes, run_forward_pass
from rlpheads.kernels.label_source import concatenate
from rlpheads.kernels.operators import register_named_operator
from rlpheads.kernels.rows.kernel import Kernel
from rlpheads.kernels.rows.partials import Exponentials, LogitGradient

Losses = tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor, Tensor, Tensor]
"""The members of `RandomLabelLoss`, in their order."""


class WholeHeads(NamedTuple):
    """Features, weight and bias of each head, and the labels of all heads' rows, one head after another."""

    features: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor | None]
    labels_LR: Tensor
    first_weight_R: Tensor | None
    """Weight of the first of two labels; None where rows have one."""

    @property
    def linear(self) -> LinearHeads:
        """The heads without their labels."""
        return LinearHeads(*self[:3])

    def of(self, heads: slice) -> "WholeHeads":
        """Some of the heads, one after another."""
        if heads == slice(0, len(self.weights)):
            return self
        num_rows = self.labels_LR.shape[1] // len(self.weights)
        rows = slice(heads.start * num_rows, heads.stop * num_rows)
        first_weight_R = None if self.first_weight_R is None else self.first_weight_R[rows]
        return WholeHeads(*self.linear.of(heads), self.labels_LR[:, rows], first_weight_R)


class Wanted(NamedTuple):
    """What is computed beside cross-entropy and measures."""

    regularizer: str | None
    joint: bool
    for_classes: bool
    """A gradient of a weight or bias will be asked for."""
    for_features: bool
    memory_budget: int
    """Bytes of exponentials that each head may keep."""


def whole_head_losses(
    heads: WholeHeads, wanted: Wanted, kept: KeptOperands | None = None, last_stage: Kernel | None = None
) -> Losses:
    """The members of `RandomLabelLoss` of all heads' rows, (R,), with their gradient routes attached.

    Args:
        heads: the heads.
        wanted: what is computed.
        kept: holds the weights in the products' dtype from one call to the next; None: each call casts them.
        last_stage: takes the gradients of weights and biases, head by head; None: they are made together.
    """
    groups = [_group_losses(heads.of(some), wanted, kept, last_stage) for some in _groups(heads, wanted)]
    if len(groups) == 1:
        return groups[0]
    members = [None if parts[0] is None else concatenate(parts) for parts in zip(*groups, strict=True)]
    return tuple(members)  # type: ignore[return-value]


def _groups(heads: WholeHeads, wanted: Wanted) -> list[slice]:
    """Heads one after another that share their launches."""
    linear = heads.linear

    def most_together(number: int) -> int:
        one = heads.of(slice(number, number + 1))
        plan = one.linear.in_memory(one.labels_LR).plan(
            wanted.memory_budget if wanted.for_classes else None, _outputs(wanted)
        )
        return linear.most_together(number, plan)

    return group_heads(list(map(linear.kind, range(len(heads.weights)))), most_together)


def _outputs(wanted: Wanted) -> PassOutputs:
    return PassOutputs.of(wanted.regularizer, products=wanted.for_features)


def _group_losses(heads: WholeHeads, wanted: Wanted, kept: KeptOperands | None, last_stage: Kernel | None) -> Losses:
    """The losses of heads of one group."""
    with torch.no_grad():
        in_memory = heads.linear.in_memory(heads.labels_LR, kept=kept)
        found = _Forward._make(_forward_op(_ForwardArguments(in_memory, heads.first_weight_R, wanted)))
    places = _distinct_places(heads.features)
    loss_R, regularizer_R, joint_R = found.cross_entropy_R, found.regularizer_R, found.joint_R
    if wanted.for_classes:
        exponentials = Exponentials(found.kept_RK, found.shift_CR, found.base_CR)
        gradient = GroupGradient(in_memory, exponentials, LogitGradient(found.scale_CR, found.label_LR))
        stage = None if last_stage is None else LastStage(last_stage, len(heads.weights[0]))
        loss_R = attach_group_classes(loss_R, gradient, heads.linear, stage)
    if wanted.for_features:
        distinct = [each for number, each in enumerate(heads.features) if places[number] not in places[:number]]
        if wanted.regularizer is not None:
            regularizer_R, _ = _FeatureRoute.apply(Held((regularizer_R, found.regularizer_RD)), places, *distinct)
        if wanted.joint:
            joint_R, _ = _FeatureRoute.apply(Held((joint_R, found.joint_RD)), places, *distinct)
    return (
        loss_R,
        regularizer_R if wanted.regularizer is not None else None,
        joint_R if wanted.joint else None,
        *(found.hit_R, found.bits_R, found.margin_R, found.lse_R),
    )


def _distinct_places(features: Sequence[Tensor]) -> tuple[int, ...]:
    """Of each head the number of its features among the distinct ones, in the order of their first head."""
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(id(features_BD), len(numbers)) for features_BD in features)


class _FeatureRoute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, held: Held, places: tuple[int, ...], *features: Tensor) -> tuple[Tensor, ...]:
        value_R, gradient_RD = held.tensors
        ctx.places, ctx.dtype, ctx.num_features = places, features[0].dtype, len(features)
        return save_with_anchor(ctx, (value_R,), gradient_RD)

    @staticmethod
    @refuse_second_derivative
    def backward(ctx: Any, saved: Sequence[Any], upstream_R: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_RD,) = saved
        num_heads, num_features = len(ctx.places), ctx.num_features
        draws = num_heads // num_features
        # Heads that read the same features mostly stand side by side, as the draws of a tap do.
        in_runs = ctx.places == tuple(place for place in range(num_features) for _ in range(draws))
        readers = num_features if in_runs else num_heads
        of_readers = _weigh_op(_WeighArguments(gradient_RD, upstream_R, num_heads, readers, ctx.dtype))
        each = of_readers.unflatten(0, (readers, -1)).unbind()
        if in_runs:
            return (None, None, *each)
        sums: list[Tensor] = []
        for place, one_BD in zip(ctx.places, each, strict=True):
            if place == len(sums):
                sums.append(one_BD)
            else:
                sums[place] = sums[place] + one_BD
        return (None, None, *sums)


# --------------------------------------------------------------------------------------------------------- the operators


class _Forward(NamedTuple):
    """What the forward operator returns; gradients that are not wanted are empty."""

    cross_entropy_R: Tensor
    joint_R: Tensor
    regularizer_R: Tensor
    bits_R: Tensor
    margin_R: Tensor
    lse_R: Tensor
    hit_R: Tensor
    scale_CR: Tensor
    label_LR: Tensor
    kept_RK: Tensor
    shift_CR: Tensor
    base_CR: Tensor
    regularizer_RD: Tensor
    joint_RD: Tensor


class _ForwardArguments(NamedTuple):
    """What the forward operator takes: heads, the weight of the first label of mixed rows, what is wanted."""

    heads: HeadsInMemory
    first_weight_R: Tensor | None
    wanted: Wanted


def _compute_forward(given: _ForwardArguments) -> list[Tensor]:
    from rlpheads.kernels.gpu import triton_gradient_launch as launch

    heads, first_weight_R, wanted = given
    features_RD, outputs = heads.features_RD, _outputs(wanted)
    if heads.labels_LR.shape[1] == 0:
        return [shape.zeros(features_RD) for shape in _forward_shapes(heads, wanted)]
    operands = operands_of(heads)
    plan = heads.plan(wanted.memory_budget if wanted.for_classes else None, outputs)
    found = run_forward_pass(heads, plan, outputs)
    num_labels, statistics = operands.num_classes, (found.state_SR, found.label_stats_FR, found.shift_CR)
    terms = launch.row_terms(operands.labels_LR, num_labels, statistics, first_weight_R, wanted.regularizer)
    regularizer_RD, joint_RD = (features_RD.new_empty(0, features_RD.shape[1], dtype=torch.float32) for _ in range(2))
    if wanted.for_features and wanted.regularizer is not None:
        factors = terms.exp_R, terms.moment_R if outputs.moments else None, terms.own_LR
        uniform = wanted.regularizer == "uniform"
        regularizer_RD = launch.feature_gradients(operands, found.sums, factors, num_labels, uniform=uniform)
    if wanted.for_features and wanted.joint:
        joint_RD = launch.feature_gradients(
            operands, found.sums, (terms.scale_CR[-1], None, terms.label_LR), num_labels, uniform=False
        )
    kept = found.kept_RK, found.shift_CR, found.base_CR
    return [*terms.values, terms.hit_R, terms.scale_CR, terms.label_LR, *kept, regularizer_RD, joint_RD]


def _shape_of_forward(given: _ForwardArguments) -> list[Tensor]:
    features_RD = given.heads.features_RD
    return [shape.empty(features_RD) for shape in _forward_shapes(given.heads, given.wanted)]


def _forward_shapes(heads: HeadsInMemory, wanted: Wanted) -> list[Shape]:
    (labels_a_row, num_rows), num_features = heads.labels_LR.shape, heads.features_RD.shape[1]
    outputs = _outputs(wanted)
    plan = heads.plan(wanted.memory_budget if wanted.for_classes else None, outputs)
    of_features = wanted.for_features and wanted.regularizer is not None, wanted.for_features and wanted.joint
    return [
        *[Shape((num_rows,))] * 6,
        Shape((num_rows,), torch.bool),
        *(Shape((plan.num_slabs, num_rows)), Shape((labels_a_row, num_rows))),
        *pass_shapes(heads, plan, outputs)[-3:],
        *(Shape((num_rows if is_wanted else 0, num_features)) for is_wanted in of_features),
    ]


class _WeighArguments(NamedTuple):
    """dL/dx of every row, upstream of every row, number of heads, of tensors that they read, dtype of the result."""

    gradient_RD: Tensor
    upstream_R: Tensor
    num_heads: int
    readers: int
    dtype: torch.dtype


def _compute_weighed(given: _WeighArguments) -> Tensor:
    """Upstream times dL/dx of every row, summed over the heads of each reader, (readers·B, D)."""
    from rlpheads.kernels.gpu.triton_gradient_launch import weigh_features

    out_RD = _empty_weighed(given)
    if out_RD.numel():
        weigh_features(out_RD, given.gradient_RD, given.upstream_R.contiguous(), given.num_heads)
    return out_RD


def _empty_weighed(given: _WeighArguments) -> Tensor:
    num_rows, num_features = given.gradient_RD.shape
    return given.gradient_RD.new_empty(num_rows // given.num_heads * given.readers, num_features, dtype=given.dtype)


_forward_op = register_named_operator("triton_heads", _compute_forward, _shape_of_forward)
_weigh_op = register_named_operator("triton_weigh_features", _compute_weighed, _empty_weighed)
