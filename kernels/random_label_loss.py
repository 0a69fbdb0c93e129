"""The random-label loss: one linear head, one softmax, two routes for the gradient.

A random-label head is trained to predict labels drawn at random, while the network below it is trained, through a
regularizer on the same softmax, to make that harder. Both need the same K logits of each row, which for large K should
be computed once and never all be held at once. `random_label_loss` returns every row's losses, each with the gradient
route that belongs to it, and what is measured along the way.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlpheads.kernels import arguments, reference
from rlpheads.kernels.partials import ClassRange, Needs, accumulation_dtype
from rlpheads.kernels.row_softmax import RowLabels, combine, row_labels
from rlpheads.kernels.stages import KERNELS, attach_class_gradients, attach_feature_gradient, local_feature_gradient
from rlpheads.kernels.terms import TERMS

IMPLS = ("auto", "reference", *KERNELS)
"""What `impl` may be."""

DEFAULT_MEMORY_BUDGET = 256 * 2**20
"""Bytes of exponentials that are kept for backward unless the caller says otherwise."""

SMALL_LOGITS = 2**17
"""Entries of B x K up to which `auto` writes all logits out: below, a call costs more than its arithmetic."""


class RandomLabelLoss(NamedTuple):
    """What `random_label_loss` returns: all (B,), float32, or float64 if an input is; `hit_B` is bool.

    Only the first three carry a gradient.
    """

    cross_entropy_B: Tensor
    """−log p_y. Its gradient reaches weight and bias, never the features."""
    regularizer_B: Tensor | None
    """The regularizer. Its gradient reaches the features, never weight or bias. None when none was asked for."""
    joint_B: Tensor | None
    """−log p_y once more, with its gradient reaching the features only. None unless asked for."""
    hit_B: Tensor
    """Whether the label has the largest logit, ties to the lowest label."""
    bits_B: Tensor
    """log2 K + log2 p_y: bits that the head knows about the label."""
    margin_B: Tensor
    """z_y − max_{j≠y} z_j."""
    lse_B: Tensor
    """log Σ_j e^{z_j}."""


def random_label_loss(
    features_BD: Tensor,
    weight_KD: Tensor,
    labels_B: Tensor,
    *,
    bias_K: Tensor | None = None,
    pair: tuple[Tensor, Tensor] | None = None,
    regularizer: str | None = None,
    joint: bool = False,
    impl: str = "auto",
    memory_budget: int | None = None,
) -> RandomLabelLoss:
    """Losses of a linear head z = X Wᵀ + b on random labels y, with p = softmax(z), row by row.

    The losses are neither weighted nor reduced: the caller multiplies, sums and calls backward, and each row's upstream
    gradient is honoured. Each loss trains one side only:

    =================  ==================================  =======================
    member             value                               gradient reaches
    =================  ==================================  =======================
    `cross_entropy_B`  −log p_y                            `weight_KD`, `bias_K`
    `regularizer_B`    by `regularizer`, see below         `features_BD`
    `joint_B`          −log p_y                            `features_BD`
    =================  ==================================  =======================

    With `regularizer=None, joint=False` the features are not part of the result's graph, and no gradient of theirs is
    computed. Every value and gradient is exact at any margin: p_y → 1 loses no digits of 1 − p_y.

    Args:
        features_BD: (B, D), floating-point; B may be 0.
        weight_KD: (K, D), floating-point, K ≥ 2. It may differ from the features in dtype; gradients have the dtype of
            what they belong to, and are accumulated in float32 (float64 if an input is float64).
        labels_B: (B,) int32 or int64 in [0, K). The range is checked on the CPU only.
        bias_K: (K,), or None for a head without bias.
        pair: (labels, weight), both (B,): second label of each row, as for mixup, and the weight in [0, 1] of the
            *first*. Cross-entropy, `unlikelihood` and `reversal` become the weighted sum of the two labels' losses; hit,
            bits and margin stay those of the first. No gradient reaches the weight.
        regularizer: what is minimised in the features: `unlikelihood` −log(1 − p_y); `uniform` −(1/K) Σ_j log p_j;
            `reversal` log p_y, unbounded below; `entropy` Σ_j p_j log p_j + log K = KL(p ‖ uniform); or None.
        joint: whether to return `joint_B`.
        impl: `reference` is plain PyTorch and holds B×K logits; `tiled_cpu` streams the classes in tiles, on the CPU;
            `auto` takes `tiled_cpu` on the CPU unless the logits are few (`SMALL_LOGITS`), else `reference`.
        memory_budget: bytes of exponentials that may be kept from forward to backward, by default 256 MiB. What does
            not fit (all would need 4·B·K bytes) is recomputed in backward, at the price of at most one matrix product
            more. `reference` ignores it.

    Returns:
        A `RandomLabelLoss`. Backward may run repeatedly under `retain_graph`; it is itself differentiable under
        `reference` only, and refuses otherwise.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together, K < 2, labels outside [0, K) or weights
            outside [0, 1] (on the CPU), an unknown `regularizer` or `impl`, an `impl` that cannot run on the device, or a
            negative budget.
    """
    arguments.check_head(features_BD, weight_KD, bias_K)
    arguments.check_labels(features_BD, labels_B, pair)
    arguments.check_regularizer(regularizer)
    arguments.check_memory_budget(memory_budget)
    impl = _resolve_impl(impl, features_BD, len(weight_KD))
    head = ClassRange(weight_KD, bias_K, start=0, num_labels=len(weight_KD))
    labels = arguments.checked_values(
        row_labels(labels_B, pair, accumulation_dtype(features_BD, weight_KD)), head.num_labels
    )
    if impl == "reference":
        return _by_reference(features_BD, head, labels, regularizer, joint)
    with_gradient = torch.is_grad_enabled()
    needs = Needs(
        regularizer=regularizer,
        feature_gradient=with_gradient and features_BD.requires_grad and (joint or regularizer is not None),
        class_gradients=with_gradient and (weight_KD.requires_grad or (bias_K is not None and bias_K.requires_grad)),
        memory_budget=DEFAULT_MEMORY_BUDGET if memory_budget is None else memory_budget,
    )
    return _by_stages(features_BD, head, labels, needs, joint, impl)


def _resolve_impl(impl: str, features_BD: Tensor, num_labels: int) -> str:
    """Return the implementation to run on this device and size."""
    arguments.check_choice("impl", impl, IMPLS)
    on_cpu = features_BD.device.type == "cpu"
    if impl == "auto":
        return "tiled_cpu" if on_cpu and len(features_BD) * num_labels > SMALL_LOGITS else "reference"
    if impl == "tiled_cpu" and not on_cpu:
        raise ValueError(
            f"impl 'tiled_cpu' runs on the CPU; the features are on {features_BD.device}: use 'auto' or 'reference'"
        )
    return impl


def _by_stages(
    features_BD: Tensor, head: ClassRange, labels: RowLabels, needs: Needs, joint: bool, impl: str
) -> RandomLabelLoss:
    """Run one pass over the classes for every value, then give each loss its own route."""
    fixed_BD, fixed_head = features_BD.detach(), head.detach()
    partials, products, exponentials = KERNELS[impl].local_partials(fixed_BD, fixed_head, labels.index_LB, needs)
    rows = combine([partials], labels, head.num_labels)

    def reaching_features(kind: str) -> Tensor:
        value_B = TERMS[kind].value_B(rows)
        if not needs.feature_gradient:
            return value_B
        coefficients = TERMS[kind].coefficients(rows)
        gradient_BD = local_feature_gradient(fixed_head, rows, coefficients, partials, products)
        return attach_feature_gradient(features_BD, value_B, gradient_BD)

    cross_entropy_B = TERMS["cross_entropy"].value_B(rows)
    bits_B = (math.log(head.num_labels) + rows.log_p[0]) / math.log(2)
    if needs.class_gradients:
        coefficients = TERMS["cross_entropy"].coefficients(rows)
        cross_entropy_B = attach_class_gradients(
            cross_entropy_B, fixed_BD, head, rows, coefficients, exponentials, impl
        )
    return RandomLabelLoss(
        cross_entropy_B=cross_entropy_B,
        regularizer_B=None if needs.regularizer is None else reaching_features(needs.regularizer),
        joint_B=reaching_features("cross_entropy") if joint else None,
        hit_B=rows.hit,
        bits_B=bits_B,
        margin_B=rows.margin,
        lse_B=rows.lse,
    )


def _by_reference(
    features_BD: Tensor, head: ClassRange, labels: RowLabels, regularizer: str | None, joint: bool
) -> RandomLabelLoss:
    """Compute the same from two materialised logits, each with one side detached."""
    head_BK = reference.logits(features_BD.detach(), head.weight_KD, head.bias_K)
    fixed_BK = head_BK.detach()
    fixed_head = head.detach()
    features_BK = fixed_BK
    if joint or regularizer is not None:
        features_BK = reference.logits(features_BD, fixed_head.weight_KD, fixed_head.bias_K)
    log_p_B = F.logsigmoid(reference.log_odds(fixed_BK, labels.index_LB)[0])
    return RandomLabelLoss(
        cross_entropy_B=reference.cross_entropy(head_BK, labels),
        regularizer_B=None if regularizer is None else reference.REGULARIZERS[regularizer](features_BK, labels),
        joint_B=reference.cross_entropy(features_BK, labels) if joint else None,
        hit_B=reference.is_argmax(fixed_BK, labels.index_LB[0]),
        bits_B=(math.log(head.num_labels) + log_p_B) / math.log(2),
        margin_B=reference.margin(fixed_BK, labels.index_LB[0]),
        lse_B=fixed_BK.logsumexp(1),
    )
