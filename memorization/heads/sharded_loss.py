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
from rlpheads.kernels.head_gradient import HandingOver, kernel_beneath
from rlpheads.kernels.head_rows.feature_gradients import Summed, sum_feature_gradients
from rlpheads.kernels.head_rows.head_rows import HeadRows, head_rows
from rlpheads.kernels.label_source import concatenate
from rlpheads.kernels.loss_results import RandomLabelLoss, loss_without_gradient
from rlpheads.kernels.random_label_loss import DEFAULT_MEMORY_BUDGET
from rlpheads.kernels.rows.kernel import Kernel
from rlpheads.kernels.rows.partials import ClassRange, Needs, packed_partials
from rlpheads.kernels.rows.row_softmax import LabelsOfRows
from rlpheads.kernels.stages import HeadPasses, attach_class_gradients, feature_gradients_of_heads, pass_over_heads
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


def sharded_losses(
    heads: Sequence[ShardedHead],
    labels: LabelsOfRows,
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
    in_shared_launches = isinstance(kernel_beneath(kernel), KeptStages)
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


# ------------------------------------------------------------------------------------------------------- head by head


def _losses_by_stages(
    heads: Sequence[ShardedHead],
    labels: LabelsOfRows,
    num_labels: int,
    shards: ClassShards,
    kernel: Kernel,
    *,
    joint: bool,
) -> tuple[RandomLabelLoss, list[_FeatureGradient]]:
    """The losses as functions of weights and biases, and what the ranges add to gradients in the features."""
    checked, kind = arguments.check_label_values(labels, heads[0].classes.num_labels), regularizer_of(heads)
    features, needs = [head.features_GD for head in heads], [head.needs for head in heads]
    stages = kernel_beneath(kernel)
    passes = pass_over_heads(stages, features, [head.classes for head in heads], checked.index_LB, needs)
    rows = head_rows(shards.gather_blocks(passes.packed_FR), checked, num_labels, kind)
    loss = loss_without_gradient(rows)
    if any(each.class_gradients for each in needs):
        local_heads = [each.local for each in passes.heads]
        attached_R = attach_class_gradients(rows.cross_entropy_B, local_heads, rows, rows.of_cross_entropy, kernel)
        loss = loss._replace(cross_entropy_B=attached_R)
    loss = loss._replace(
        regularizer_B=None if kind is None else rows.regularizer_B,
        joint_B=rows.cross_entropy_B.clone() if joint else None,
    )
    return loss, _feature_gradients(heads, stages, passes, rows, joint=joint)


def _feature_gradients(
    heads: Sequence[ShardedHead], kernel: Kernel, passes: HeadPasses, rows: HeadRows, *, joint: bool
) -> list[_FeatureGradient]:
    """Return what the ranges add to the gradient of every term in every head's features."""
    trained: dict[tuple[str, str], dict[int, list[Tensor | None]]] = {}
    for number, head in enumerate(heads):
        for term, kind, targets in _trained([head], joint=joint):
            trained.setdefault((term, kind), {})[number] = targets
    found = []
    for (term, kind), of_heads in trained.items():
        gradients = feature_gradients_of_heads(kernel, passes, rows, kind, list(of_heads))
        for (number, targets), gradient_GD in zip(of_heads.items(), gradients, strict=True):
            found.append(_FeatureGradient(term, number, targets, gradient_GD))
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
    labels: LabelsOfRows,
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
    ranges = HeadRanges(linear, labels.index_LB, heads[0].classes.start)
    last_stage = LastStage(kernel, num_labels) if isinstance(kernel, HandingOver) else None
    stages = kernel_beneath(kernel)
    assert isinstance(stages, KeptStages)
    passes = range_passes(ranges, [head.needs for head in heads], stages.kept)
    gathered_NFR = shards.gather_blocks(packed_partials([each.partials for each in passes]))
    parts: list[RandomLabelLoss] = []
    gradients: list[_FeatureGradient] = []
    for each in passes:
        of_group, of_rows = heads[each.heads], ranges.rows_of(each.heads)
        trained = {term: targets for term, _, targets in _trained(of_group, joint=joint)}
        first_weight_R = None if labels.first_weight_B is None else labels.first_weight_B[of_rows]
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
        Summed(terms.index(each.term), each.first_head, tuple(places.get(id(target), -1) for target in each.targets))
        for each in gradients
    ]
    *attached, _ = _SharedFeatureRoute.apply(
        _RoutePlan(shards, len(heads), tuple(entries)),
        *(getattr(loss, name) for name in terms),
        *targets,
        *(gradient.gradient_RD for gradient in gradients),
    )
    return loss._replace(**dict(zip(terms, attached, strict=True)))


class _RoutePlan(NamedTuple):
    shards: ClassShards
    num_heads: int
    entries: tuple[Summed, ...]


class _SharedFeatureRoute(torch.autograd.Function):
    """Identity of the terms' values; its backward adds up the ranges' gradients of each target over the ranks."""

    @staticmethod
    def forward(ctx: Any, plan: _RoutePlan, *tensors: Tensor) -> tuple[Tensor, ...]:
        num_gradients = len(plan.entries)
        num_targets = 1 + max(place for entry in plan.entries for place in entry.places)
        values = tensors[: len(tensors) - num_targets - num_gradients]
        ctx.plan = plan
        ctx.dtypes = [target_BD.dtype for target_BD in tensors[len(values) :][:num_targets]]
        copies = tuple(value.clone() for value in values)
        return save_with_anchor(ctx, copies, *tensors[len(tensors) - num_gradients :])

    @staticmethod
    @refuse_second_derivative
    def backward(ctx: Any, saved: Sequence[Tensor], *upstream: Tensor) -> tuple[Tensor | None, ...]:
        plan = ctx.plan
        own = plan.shards.sum_own_rows(sum_feature_gradients(upstream, saved, plan.entries, plan.num_heads))
        of_targets = [own_BD.to(dtype) for own_BD, dtype in zip(own, ctx.dtypes, strict=True)]
        # a value goes on to the node that trains the classes, where there is one
        return (None, *upstream, *of_targets, *[None] * len(plan.entries))
