"""The random-label loss of sharded heads whose logits are written out: all heads in one call before the exchange, one behind.

For few labels a step costs its calls, not its arithmetic: so nothing here is done head by head. What is computed, and what
travels, is as in `rlpheads.memorization.heads.sharded_loss`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.batched.batched_loss import BatchedLabels, attach_classes, feature_gradients_op
from rlpheads.kernels.batched.range_rows import HeldRange, range_partials, rows_of_ranges
from rlpheads.kernels.batched.written_rows import WrittenHeads
from rlpheads.kernels.first_derivative import refuse_second_derivative, save_with_anchor
from rlpheads.kernels.loss_results import RandomLabelLoss
from rlpheads.kernels.rows.row_softmax import LabelsOfRows
from rlpheads.memorization.heads.class_shards import ClassShards
from rlpheads.memorization.heads.sharded_loss import ShardedHead, regularizer_of, trained_targets


def written_losses(
    heads: Sequence[ShardedHead],
    labels: LabelsOfRows,
    num_labels: int,
    shards: ClassShards,
    *,
    joint: bool,
    plain: bool,
) -> RandomLabelLoss:
    """`rlpheads.memorization.heads.sharded_loss.sharded_losses` with all logits of the range written out. Collective.

    Args:
        heads: as there, like all that follow but for `plain`.
        labels: likewise.
        num_labels: likewise.
        shards: likewise.
        joint: likewise.
        plain: compute in PyTorch, even where there is C++.

    Memory: B·K/N numbers a head for each gradient route, of N ranks.
    """
    kind, routes = regularizer_of(heads), _routes(heads, joint=joint)
    written = WrittenHeads(
        [head.features_GD for head in heads],
        [head.classes.weight_KD for head in heads],
        [head.classes.bias_K for head in heads],
    )
    of_classes = any(head.needs.class_gradients for head in heads)
    terms = {route.term for route in routes}
    wanted = of_classes or bool(terms - {"regularizer_B"}), "regularizer_B" in terms
    of_rows, held = BatchedLabels(*labels), HeldRange(heads[0].classes.start, num_labels, kind, plain)
    sums = range_partials(written, of_rows, held)
    rows = rows_of_ranges(shards.gather_blocks(sums.packed_FR), sums, of_rows, len(heads), held, wanted)
    loss = RandomLabelLoss(
        cross_entropy_B=rows.cross_entropy_R,
        regularizer_B=None if kind is None else rows.regularizer_R,
        joint_B=rows.cross_entropy_R.clone() if joint else None,
        hit_B=rows.hit_R,
        bits_B=rows.bits_R,
        margin_B=rows.margin_R,
        lse_B=rows.lse_R,
    )
    if of_classes:
        attached_R = attach_classes(loss.cross_entropy_B, rows.class_gradient_RK, written)
        loss = loss._replace(cross_entropy_B=attached_R)
    matrices = {"cross_entropy_B": rows.class_gradient_RK, "regularizer_B": rows.feature_gradient_RK}
    matrices["joint_B"] = rows.class_gradient_RK
    return _attach_features(loss, routes, matrices, heads, shards)


class _Route(NamedTuple):
    """Which term trains what some heads read."""

    term: str
    heads: tuple[int, ...]
    targets: tuple[int, ...]
    """Of each of these heads the number of what it reads, among all that is trained."""


def _routes(heads: Sequence[ShardedHead], *, joint: bool) -> list[_Route]:
    """Return what trains the features and hidden layers."""
    places = {id(target): number for number, target in enumerate(trained_targets(heads))}
    wanted = {
        "cross_entropy_B": [head.learned_BD for head in heads],
        "regularizer_B": [None if head.regularizer is None else head.carried_BD for head in heads],
        "joint_B": [head.carried_BD if joint else None for head in heads],
    }
    routes = []
    for term, targets in wanted.items():
        number_of = {number: places[id(target)] for number, target in enumerate(targets) if id(target) in places}
        if number_of:
            routes.append(_Route(term, tuple(number_of), tuple(number_of.values())))
    return routes


class _RoutePlan(NamedTuple):
    shards: ClassShards
    num_heads: int
    routes: tuple[_Route, ...]
    dtypes: tuple[torch.dtype, ...]
    """Of the targets."""


def _attach_features(
    loss: RandomLabelLoss,
    routes: Sequence[_Route],
    matrices: dict[str, Tensor | None],
    heads: Sequence[ShardedHead],
    shards: ClassShards,
) -> RandomLabelLoss:
    """Make the losses functions of the features that they train: one node, whose backward sends one message."""
    if not routes:
        return loss
    targets = trained_targets(heads)
    plan = _RoutePlan(shards, len(heads), tuple(routes), tuple(target.dtype for target in targets))
    *attached, _ = _FeatureRoute.apply(
        plan,
        *(getattr(loss, route.term) for route in routes),
        *(matrices[route.term] for route in routes),
        *(head.classes.weight_KD.detach() for head in heads),
        *targets,
    )
    return loss._replace(**dict(zip((route.term for route in routes), attached, strict=True)))


class _FeatureRoute(torch.autograd.Function):
    """Identity of the terms' values; its backward adds up the ranges' gradients of each target over the ranks."""

    @staticmethod
    def forward(ctx: Any, plan: _RoutePlan, *tensors: Tensor) -> tuple[Tensor, ...]:
        num_routes = len(plan.routes)
        ctx.plan = plan
        copies = tuple(value.clone() for value in tensors[:num_routes])
        return save_with_anchor(ctx, copies, *tensors[num_routes : 2 * num_routes + plan.num_heads])

    @staticmethod
    @refuse_second_derivative
    def backward(ctx: Any, saved: Sequence[Tensor], *upstream: Tensor) -> tuple[Tensor | None, ...]:
        plan, num_routes = ctx.plan, len(ctx.plan.routes)
        matrices, weights = saved[:num_routes], saved[num_routes:]
        sums: list[Tensor | None] = [None] * len(plan.dtypes)
        for route, matrix_RK, upstream_R in zip(plan.routes, matrices, upstream, strict=True):
            for target, of_target_GD in _gradients(route, matrix_RK, upstream_R, weights).items():
                sum_GD = sums[target]
                sums[target] = of_target_GD if sum_GD is None else sum_GD + of_target_GD
        own = plan.shards.sum_own_rows([sum_GD for sum_GD in sums if sum_GD is not None])
        of_targets = [own_BD.to(dtype) for own_BD, dtype in zip(own, plan.dtypes, strict=True)]
        # a value goes on to the node that trains the classes, where there is one
        return (None, *upstream, *[None] * (num_routes + plan.num_heads), *of_targets)


def _gradients(route: _Route, gradient_RK: Tensor, upstream_R: Tensor, weights: Sequence[Tensor]) -> dict[int, Tensor]:
    """Σ of v·G·W over the heads that read the same, by the number of what they read."""
    if len(route.heads) < len(weights):
        num_rows, num_held = len(gradient_RK) // len(weights), gradient_RK.shape[1]  # which may be none
        of_heads = gradient_RK.view(len(weights), num_rows, num_held).unbind()
        gradient_RK = torch.cat([of_heads[number] for number in route.heads])
        upstream_of_heads = upstream_R.view(len(weights), num_rows).unbind()
        upstream_R = torch.cat([upstream_of_heads[number] for number in route.heads])
    distinct = list(dict.fromkeys(route.targets))
    places = [distinct.index(target) for target in route.targets]
    of_route = [weights[number] for number in route.heads]
    found = feature_gradients_op(of_route, gradient_RK, upstream_R, places, gradient_RK.dtype)
    return dict(zip(distinct, found, strict=True))
