"""The random-label loss of heads whose classes are sharded: one message of partials forward, at most one of gradients backward.

Every rank holds the rows of all ranks (G) and a range of each head's classes. It reduces its range to a few numbers for each
row, gathers those of the other ranks, and merges them in the order of the ranks: every rank then has the losses of all G
rows, to the last bit. So a scalar made of them is the same at every rank, and so is its gradient in each row: the gradients
of the range's own weights need no message at all. Those of the features are sums over the ranges, of which each rank gets
the rows that it gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels import arguments
from rlpheads.kernels.batched.range_rows import unpacked
from rlpheads.kernels.first_derivative import refuse_second_derivative, save_with_anchor
from rlpheads.kernels.gpu.heads.head_groups import LastStage, LinearHeads
from rlpheads.kernels.gpu.heads.kept_stages import KeptStages
from rlpheads.kernels.gpu.heads.range_heads import (
    HeadRanges,
    RangeTerms,
    attach_range_classes,
    merged_range_rows,
    range_passes,
)
from rlpheads.kernels.head_gradient import HandingOver
from rlpheads.kernels.label_source import concatenate
from rlpheads.kernels.loss_results import RandomLabelLoss, losses_without_gradient
from rlpheads.kernels.random_label_loss import DEFAULT_MEMORY_BUDGET
from rlpheads.kernels.rows.kernel import Kernel
from rlpheads.kernels.rows.partials import ClassRange, Needs, Partials, Products, accumulation_dtype
from rlpheads.kernels.rows.row_softmax import RowSoftmax, by_head, merge_stacked_partials, row_labels
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
        parameters = [each for each in self.classes[:2] if each is not None]
        return Needs(
            regularizer=self.regularizer,
            feature_gradient=with_gradient and any(target.requires_grad for target in targets),
            class_gradients=with_gradient and any(parameter.requires_grad for parameter in parameters),
            memory_budget=DEFAULT_MEMORY_BUDGET,
        )


class _FeatureGradient(NamedTuple):
    """The ranges' part of the gradient of one term of some heads, one after another, in the features of all rows."""

    term: str
    first_head: int
    targets: Sequence[Tensor | None]
    """What the term trains through each of these heads, (B, D); None: nothing."""
    gradient_RD: Tensor


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
    in_shared_launches = isinstance(kernel.kernel if isinstance(kernel, HandingOver) else kernel, KeptStages)
    find = _losses_in_shared_launches if in_shared_launches else _losses_by_stages
    loss, gradients = find(heads, labels, num_labels, shards, kernel, joint=joint)
    return _attach_feature_gradients(loss, gradients, heads, shards)


def regularizer_of(heads: Sequence[ShardedHead]) -> str | None:
    """Return the kind of regulariser that any of the heads has: there is one at most."""
    return next((head.regularizer for head in heads if head.regularizer is not None), None)


def trained_targets(heads: Sequence[ShardedHead]) -> list[Tensor]:
    """Return what is trained in front of the heads, in the heads' order: that of the message, whichever way a rank computes."""
    found: dict[int, Tensor] = {}
    if torch.is_grad_enabled():
        for head in heads:
            for target in (head.learned_BD, head.carried_BD):
                if target is not None and target.requires_grad:
                    found.setdefault(id(target), target)
    return list(found.values())


def _packed(partials_of_heads: Sequence[Partials]) -> Tensor:
    """The partials of all heads' rows as they travel, (F, R)."""
    partials = Partials(*(concatenate(parts) for parts in zip(*partials_of_heads, strict=True)))
    num_rows = partials.shift_B.shape[0]
    return torch.cat([numbers.reshape(-1, num_rows) for numbers in partials])


# ------------------------------------------------------------------------------------------------------- head by head


class _RangePass(NamedTuple):
    """One head after the pass over its range of classes."""

    head: ShardedHead
    partials: Partials
    products: Products
    local: LocalHead


def _losses_by_stages(
    heads: Sequence[ShardedHead],
    labels: ShardedLabels,
    num_labels: int,
    shards: ClassShards,
    kernel: Kernel,
    *,
    joint: bool,
) -> tuple[RandomLabelLoss, list[_FeatureGradient]]:
    """The losses as functions of weights and biases, and what the ranges add to gradients in the features."""
    of_rows = row_labels(*labels, accumulation_dtype(heads[0].features_GD, heads[0].classes.weight_KD))
    checked = arguments.check_label_values(of_rows, heads[0].classes.num_labels)
    labels_of_heads = by_head(checked.index_LB, len(heads))
    passes = [_pass_over_range(head, each, kernel) for head, each in zip(heads, labels_of_heads, strict=True)]
    gathered_NFR = shards.gather_blocks(_packed([each.partials for each in passes]))
    rows = merge_stacked_partials(unpacked(gathered_NFR), checked, num_labels)
    loss = losses_without_gradient(rows)
    if any(head.needs.class_gradients for head in heads):
        local_heads, coefficients = [each.local for each in passes], TERMS["cross_entropy"].coefficients(rows)
        attached_R = attach_class_gradients(loss.cross_entropy_B, local_heads, rows, coefficients, kernel)
        loss = loss._replace(cross_entropy_B=attached_R)
    kind = regularizer_of(heads)
    loss = loss._replace(
        regularizer_B=None if kind is None else TERMS[kind].value_B(rows),
        joint_B=TERMS["cross_entropy"].value_B(rows) if joint else None,
    )
    return loss, _feature_gradients(passes, rows, joint=joint)


def _pass_over_range(head: ShardedHead, labels_LG: Tensor, kernel: Kernel) -> _RangePass:
    needs = head.needs
    with torch.no_grad():  # not a detached weight: its copies are kept for itself
        partials, products, kept = kernel.local_partials(head.features_GD, head.classes, labels_LG, needs)
    return _RangePass(head, partials, products, LocalHead(head.features_GD, head.classes, kept))


def _feature_gradients(passes: Sequence[_RangePass], rows: RowSoftmax, *, joint: bool) -> list[_FeatureGradient]:
    """Return what the ranges add to the gradient of every term in every head's features."""
    num_heads = len(passes)
    shifts, all_labels = by_head(rows.shift_B, num_heads), by_head(rows.labels.index_LB, num_heads)
    kinds = {"cross_entropy", *(each.head.regularizer or "cross_entropy" for each in passes)}
    coefficients = {kind: TERMS[kind].coefficients(rows).by_head(num_heads) for kind in kinds}
    found = []
    for number, (head, partials, products, local) in enumerate(passes):
        for term, kind, (target_BD,) in _trained([head], joint=joint):
            gradient_GD = local_feature_gradient(
                local.head.detach(),
                all_labels[number],
                shifts[number],
                coefficients[kind][number],
                partials,
                products,
            )
            found.append(_FeatureGradient(term, number, [target_BD], gradient_GD))
    return found


def _trained(heads: Sequence[ShardedHead], *, joint: bool) -> Iterator[tuple[str, str, list[Tensor | None]]]:
    """Yield the terms of heads of one kind that train features: term, kind of loss, what each head trains or None."""
    wanted: tuple[tuple[str, str | None, list[Tensor | None]], ...] = (
        ("cross_entropy_B", "cross_entropy", [head.learned_BD for head in heads]),
        ("regularizer_B", heads[0].regularizer, [head.carried_BD for head in heads]),
        ("joint_B", "cross_entropy" if joint else None, [head.carried_BD for head in heads]),
    )
    for term, kind, targets in wanted:
        trained = [target if target is not None and target.requires_grad else None for target in targets]
        if kind is not None and heads[0].needs.feature_gradient and any(target is not None for target in trained):
            yield term, kind, trained


# -------------------------------------------------------------------------------------------- in launches that heads share


def _losses_in_shared_launches(
    heads: Sequence[ShardedHead],
    labels: ShardedLabels,
    num_labels: int,
    shards: ClassShards,
    kernel: Kernel,
    *,
    joint: bool,
) -> tuple[RandomLabelLoss, list[_FeatureGradient]]:
    """`_losses_by_stages` on a GPU, group by group: heads of one width, and with the same terms, are mostly one group."""
    linear = LinearHeads(
        [head.features_GD for head in heads],
        [head.classes.weight_KD for head in heads],
        [head.classes.bias_K for head in heads],
    )
    ranges = HeadRanges(linear, labels.index_LR, heads[0].classes.start)
    last_stage = LastStage(kernel, num_labels) if isinstance(kernel, HandingOver) else None
    stages = kernel.kernel if isinstance(kernel, HandingOver) else kernel
    assert isinstance(stages, KeptStages)
    passes = range_passes(ranges, [head.needs for head in heads], stages.kept)
    gathered_NFR = shards.gather_blocks(_packed([each.partials for each in passes]))
    parts: list[RandomLabelLoss] = []
    gradients: list[_FeatureGradient] = []
    for each in passes:
        of_group, of_rows = heads[each.heads], ranges.rows_of(each.heads)
        trained = {term: targets for term, _, targets in _trained(of_group, joint=joint)}
        first_weight_R = None if labels.first_weight_R is None else labels.first_weight_R[of_rows]
        terms = RangeTerms(
            num_labels, of_group[0].regularizer, "regularizer_B" in trained, bool(trained.keys() - {"regularizer_B"})
        )
        rows = merged_range_rows(each, gathered_NFR, of_rows.start, first_weight_R, terms)
        loss_R = rows.cross_entropy_R
        if of_group[0].needs.class_gradients:
            loss_R = attach_range_classes(each, rows, last_stage)
        measured = rows.hit_R, rows.bits_R, rows.margin_R, rows.lse_R
        parts.append(RandomLabelLoss(loss_R, rows.regularizer_R, rows.copy_R, *measured))
        gradients += [
            _FeatureGradient(
                term,
                each.heads.start,
                targets,
                rows.regularizer_RD if term == "regularizer_B" else rows.cross_entropy_RD,
            )
            for term, targets in trained.items()
        ]
    loss = RandomLabelLoss(*(concatenate(list(of_groups)) for of_groups in zip(*parts, strict=True)))
    return loss._replace(
        regularizer_B=None if regularizer_of(heads) is None else loss.regularizer_B,
        joint_B=loss.joint_B if joint else None,
    ), gradients


# ------------------------------------------------------------------------------------------------- gradients of features


def _attach_feature_gradients(
    loss: RandomLabelLoss, gradients: Sequence[_FeatureGradient], heads: Sequence[ShardedHead], shards: ClassShards
) -> RandomLabelLoss:
    """Make the losses functions of the features that they train: one node, whose backward sends one message."""
    if not gradients:
        return loss
    terms = list(dict.fromkeys(gradient.term for gradient in gradients))
    targets = trained_targets(heads)
    places = {id(target): number for number, target in enumerate(targets)}
    entries = [
        _Entry(terms.index(each.term), each.first_head, tuple(places.get(id(target), -1) for target in each.targets))
        for each in gradients
    ]
    *attached, _ = _SharedFeatureRoute.apply(
        _RoutePlan(shards, len(heads), tuple(entries)),
        *(getattr(loss, name) for name in terms),
        *targets,
        *(gradient.gradient_RD for gradient in gradients),
    )
    return loss._replace(**dict(zip(terms, attached, strict=True)))


class _Entry(NamedTuple):
    """Which term of which heads a gradient belongs to, and which target each head's part is added to; −1: none."""

    term: int
    first_head: int
    targets: tuple[int, ...]


class _RoutePlan(NamedTuple):
    shards: ClassShards
    num_heads: int
    entries: tuple[_Entry, ...]


class _SharedFeatureRoute(torch.autograd.Function):
    """Identity of the terms' values; its backward adds up the ranges' gradients of each target over the ranks."""

    @staticmethod
    def forward(ctx: Any, plan: _RoutePlan, *tensors: Tensor) -> tuple[Tensor, ...]:
        num_gradients = len(plan.entries)
        num_targets = 1 + max(place for entry in plan.entries for place in entry.targets)
        values = tensors[: len(tensors) - num_targets - num_gradients]
        ctx.plan = plan
        ctx.dtypes = [target_BD.dtype for target_BD in tensors[len(values) :][:num_targets]]
        copies = tuple(value.clone() for value in values)
        return save_with_anchor(ctx, copies, *tensors[len(tensors) - num_gradients :])

    @staticmethod
    @refuse_second_derivative
    def backward(ctx: Any, saved: Sequence[Tensor], *upstream: Tensor) -> tuple[Tensor | None, ...]:
        plan = ctx.plan
        num_rows = len(upstream[0]) // plan.num_heads
        sums: list[Tensor | None] = [None] * len(ctx.dtypes)
        for entry, gradient_RD in zip(plan.entries, saved, strict=True):
            begin = entry.first_head * num_rows
            upstream_R1 = upstream[entry.term][begin : begin + len(gradient_RD), None]
            of_heads = (upstream_R1 * gradient_RD).unflatten(0, (len(entry.targets), -1)).unbind()
            for place, of_head_GD in zip(entry.targets, of_heads, strict=True):
                if place >= 0:
                    sum_GD = sums[place]
                    sums[place] = of_head_GD if sum_GD is None else sum_GD + of_head_GD
        own = plan.shards.sum_own_rows([sum_GD for sum_GD in sums if sum_GD is not None])
        of_targets = [own_BD.to(dtype) for own_BD, dtype in zip(own, ctx.dtypes, strict=True)]
        # a value goes on to the node that trains the classes, where there is one
        return (None, *upstream, *of_targets, *[None] * len(plan.entries))
