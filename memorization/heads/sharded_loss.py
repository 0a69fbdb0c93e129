"""The random-label loss of heads whose classes are sharded: one message of partials forward, at most one of gradients backward.

Every rank holds the rows of all ranks (G) and a range of each head's classes. It reduces its range to a few numbers for each
row, gathers those of the other ranks, and merges them in the order of the ranks: every rank then has the losses of all G
rows, to the last bit. So a scalar made of them is the same at every rank, and so is its gradient in each row: the gradients
of the range's own weights need no message at all. Those of the features are sums over the ranges, of which each rank gets
the rows that it gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlpheads.kernels import arguments
from rlpheads.kernels.batched.range_rows import unpacked
from rlpheads.kernels.label_source import concatenate
from rlpheads.kernels.loss_results import RandomLabelLoss, losses_without_gradient
from rlpheads.kernels.random_label_loss import DEFAULT_MEMORY_BUDGET
from rlpheads.kernels.rows.kernel import Kernel
from rlpheads.kernels.rows.partials import ClassRange, Needs, Partials, Products, accumulation_dtype
from rlpheads.kernels.rows.row_softmax import RowLabels, RowSoftmax, by_head, merge_stacked_partials, row_labels
from rlpheads.kernels.rows.terms import TERMS
from rlpheads.kernels.stages import LocalHead, attach_class_gradients, local_feature_gradient
from rlpheads.memorization.heads.class_shards import ClassShards


class ShardedHead(NamedTuple):
    """One head: what it reads, and the range of its classes that this rank holds."""

    features_GD: Tensor
    """Features of the rows of all ranks, outside every graph."""
    classes: ClassRange
    regularizer: str | None = None
    """Kind of regulariser, or None."""
    learned_BD: Tensor | None = None
    """This rank's features as a function of the head's hidden layer, which its cross-entropy trains; None: it has none."""
    carried_BD: Tensor | None = None
    """This rank's features as a function of the tap's, which regulariser and joint term train; None where neither is."""

    @property
    def needs(self) -> Needs:
        """What is to be computed for this head."""
        with_gradient = torch.is_grad_enabled()
        targets = [target for target in (self.learned_BD, self.carried_BD) if target is not None]
        return Needs(
            regularizer=self.regularizer,
            feature_gradient=with_gradient and any(target.requires_grad for target in targets),
            class_gradients=with_gradient and self.classes.weight_KD.requires_grad,
            memory_budget=DEFAULT_MEMORY_BUDGET,
        )


class _RangePass(NamedTuple):
    """One head after the pass over its range of classes."""

    head: ShardedHead
    partials: Partials
    products: Products
    local: LocalHead


class _FeatureGradient(NamedTuple):
    """This range's part of the gradient of one term of one head, in the features of all rows."""

    term: str
    head: int
    target_BD: Tensor
    gradient_GD: Tensor


class ShardedLabels(NamedTuple):
    """Labels of the rows of all ranks and heads, one head after another."""

    index_LR: Tensor
    """int64; two for mixed rows."""
    first_weight_R: Tensor | None
    """Of mixed rows the weight in [0, 1] of the first label; None where a row has one label."""


def sharded_losses(
    heads: Sequence[ShardedHead],
    labels: ShardedLabels,
    num_labels: int,
    shards: ClassShards,
    kernel: Kernel,
    *,
    joint: bool = False,
) -> RandomLabelLoss:
    """`rlpheads.kernels.random_label_loss.random_label_losses` of heads that are sharded by class. Collective.

    Args:
        heads: the heads, which agree in the number of rows and of classes, and in the dtype of the sums.
        labels: the labels of their rows.
        num_labels: K, the classes that a row's softmax goes over.
        shards: who holds what.
        kernel: the local stages.
        joint: whether to return `joint_B`.

    Returns:
        A `RandomLabelLoss` of the rows of all ranks and heads, one head after another, the same at every rank; of heads without
        a regulariser `regularizer_B` means nothing. Backward must start from the same function of it at every rank.
        Gradients of weights and biases are then those of that function, not an average over the ranks; those of the features
        are this rank's rows of its gradient.

    Raises:
        ValueError: labels that no head has, or weights outside [0, 1] (on the CPU).
    """
    of_rows = row_labels(*labels, accumulation_dtype(heads[0].features_GD, heads[0].classes.weight_KD))
    checked = arguments.check_label_values(of_rows, heads[0].classes.num_labels)
    labels_of_heads = by_head(checked.index_LB, len(heads))
    passes = [_pass_over_range(head, each, kernel) for head, each in zip(heads, labels_of_heads, strict=True)]
    rows = _merge_over_ranks([each.partials for each in passes], checked, num_labels, shards)
    loss = losses_without_gradient(rows)
    if passes[0].head.needs.class_gradients:
        local_heads, coefficients = [each.local for each in passes], TERMS["cross_entropy"].coefficients(rows)
        attached_R = attach_class_gradients(loss.cross_entropy_B, local_heads, rows, coefficients, kernel)
        loss = loss._replace(cross_entropy_B=attached_R)
    kind = regularizer_of(heads)
    loss = loss._replace(
        regularizer_B=None if kind is None else TERMS[kind].value_B(rows),
        joint_B=TERMS["cross_entropy"].value_B(rows) if joint else None,
    )
    return _attach_feature_gradients(loss, _feature_gradients(passes, rows, joint=joint), len(heads), shards)


def regularizer_of(heads: Sequence[ShardedHead]) -> str | None:
    """Return the kind of regulariser that any of the heads has: there is one at most."""
    return next((head.regularizer for head in heads if head.regularizer is not None), None)


def _pass_over_range(head: ShardedHead, labels_LG: Tensor, kernel: Kernel) -> _RangePass:
    needs = head.needs
    with torch.no_grad():  # not a detached weight: its copies are kept for itself
        partials, products, kept = kernel.local_partials(head.features_GD, head.classes, labels_LG, needs)
    return _RangePass(head, partials, products, LocalHead(head.features_GD, head.classes, kept))


def _merge_over_ranks(
    partials_of_heads: Sequence[Partials], labels: RowLabels, num_labels: int, shards: ClassShards
) -> RowSoftmax:
    """Exchange the partials of all heads in one message and merge them."""
    partials = Partials(*(concatenate(parts) for parts in zip(*partials_of_heads, strict=True)))
    num_rows = partials.shift_B.shape[0]
    packed_FR = torch.cat([numbers.reshape(-1, num_rows) for numbers in partials])
    gathered_NFR = shards.gather_blocks(packed_FR)
    return merge_stacked_partials(unpacked(gathered_NFR), labels, num_labels)


def _feature_gradients(passes: Sequence[_RangePass], rows: RowSoftmax, *, joint: bool) -> list[_FeatureGradient]:
    """Return what this range adds to the gradient of every term in every head's features."""
    num_heads = len(passes)
    shifts, all_labels = by_head(rows.shift_B, num_heads), by_head(rows.labels.index_LB, num_heads)
    kinds = {"cross_entropy", *(each.head.regularizer or "cross_entropy" for each in passes)}
    coefficients = {kind: TERMS[kind].coefficients(rows).by_head(num_heads) for kind in kinds}
    found = []
    for number, (head, partials, products, local) in enumerate(passes):
        wanted = (
            ("cross_entropy_B", "cross_entropy", head.learned_BD),
            ("regularizer_B", head.regularizer, head.carried_BD),
            ("joint_B", "cross_entropy" if joint else None, head.carried_BD),
        )
        for term, kind, target_BD in wanted:
            if kind is None or target_BD is None or not head.needs.feature_gradient or not target_BD.requires_grad:
                continue
            gradient_GD = local_feature_gradient(
                local.head.detach(),
                all_labels[number],
                shifts[number],
                coefficients[kind][number],
                partials,
                products,
            )
            found.append(_FeatureGradient(term, number, target_BD, gradient_GD))
    return found


def _attach_feature_gradients(
    loss: RandomLabelLoss, gradients: Sequence[_FeatureGradient], num_heads: int, shards: ClassShards
) -> RandomLabelLoss:
    """Make the losses functions of the features that they train: one node, whose backward sends one message."""
    if not gradients:
        return loss
    terms = [name for name in ("cross_entropy_B", "regularizer_B", "joint_B") if getattr(loss, name) is not None]
    targets: list[Tensor] = []
    entries = []
    for gradient in gradients:
        if not any(gradient.target_BD is target_BD for target_BD in targets):
            targets.append(gradient.target_BD)
        place = next(place for place, target_BD in enumerate(targets) if target_BD is gradient.target_BD)
        entries.append(_Entry(terms.index(gradient.term), gradient.head, place))
    attached = _SharedFeatureRoute.apply(
        _RoutePlan(shards, num_heads, tuple(entries)),
        *(getattr(loss, name) for name in terms),
        *targets,
        *(gradient.gradient_GD for gradient in gradients),
    )
    return loss._replace(**dict(zip(terms, attached, strict=True)))


class _Entry(NamedTuple):
    """Which term of which head a gradient belongs to, and which target it is added to."""

    term: int
    head: int
    target: int


class _RoutePlan(NamedTuple):
    shards: ClassShards
    num_heads: int
    entries: tuple[_Entry, ...]


class _SharedFeatureRoute(torch.autograd.Function):
    """Identity of the terms' values; its backward adds up the ranges' gradients of each target over the ranks."""

    @staticmethod
    def forward(ctx: Any, plan: _RoutePlan, *tensors: Tensor) -> tuple[Tensor, ...]:
        num_gradients = len(plan.entries)
        num_targets = 1 + max(entry.target for entry in plan.entries)
        values = tensors[: len(tensors) - num_targets - num_gradients]
        ctx.plan = plan
        ctx.num_values = len(values)
        ctx.dtypes = [target_BD.dtype for target_BD in tensors[len(values) :][:num_targets]]
        ctx.save_for_backward(*tensors[len(tensors) - num_gradients :])
        return tuple(value.clone() for value in values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        plan = ctx.plan
        of_heads = [by_head(upstream_R, plan.num_heads) for upstream_R in upstream]
        sums: list[Tensor | None] = [None] * len(ctx.dtypes)
        for entry, gradient_GD in zip(plan.entries, ctx.saved_tensors, strict=True):
            upstream_G1, sum_GD = of_heads[entry.term][entry.head][:, None], sums[entry.target]
            sums[entry.target] = (
                upstream_G1 * gradient_GD if sum_GD is None else sum_GD.addcmul(upstream_G1, gradient_GD)
            )
        own = plan.shards.sum_own_rows([sum_GD for sum_GD in sums if sum_GD is not None])
        of_targets = [own_BD.to(dtype) for own_BD, dtype in zip(own, ctx.dtypes, strict=True)]
        return (None, upstream[0], *[None] * (ctx.num_values - 1), *of_targets, *[None] * len(plan.entries))
