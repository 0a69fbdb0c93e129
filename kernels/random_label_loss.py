"""The random-label loss: one linear head, one softmax, two routes for the gradient.

A random-label head is trained to predict labels drawn at random, while the network below it is trained, through a
regularizer on the same softmax, to make that harder. Both need the same K logits of each row, which for large K should
be computed once and never all be held at once. `random_label_loss` returns every row's losses, each with the gradient
route that belongs to it, and what is measured along the way.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlpheads.kernels import arguments
from rlpheads.kernels.batched.batched_loss import BatchedLabels, BatchedTerms, batched_losses
from rlpheads.kernels.batched.stacked_heads import uses_stacks
from rlpheads.kernels.batched.written_rows import WrittenHeads, product_dtype
from rlpheads.kernels.gpu.heads.kept_operands import KeptOperands
from rlpheads.kernels.gpu.heads.whole_heads import Wanted, WholeHeads, whole_head_losses
from rlpheads.kernels.gpu.triton_labels import gather_by_triton
from rlpheads.kernels.gpu.triton_loss import unsupported_reason
from rlpheads.kernels.head_gradient import Consumer, HandingOver, kernel_beneath
from rlpheads.kernels.head_rows.head_rows import head_rows
from rlpheads.kernels.implementations import resolve_impl, resolve_kernel
from rlpheads.kernels.label_source import Labels, Pair, concatenate, gather_labels, tensors_of_labels
from rlpheads.kernels.loss_results import RandomLabelLoss, RandomLabelLosses, loss_without_gradient
from rlpheads.kernels.rows import reference
from rlpheads.kernels.rows.kernel import Kernel
from rlpheads.kernels.rows.partials import ClassRange, Needs, accumulation_dtype
from rlpheads.kernels.rows.row_softmax import LabelsOfRows, RowLabels, row_labels
from rlpheads.kernels.stages import (
    attach_class_gradients,
    attach_feature_gradient,
    feature_gradients_of_heads,
    kernel_that_keeps,
    pass_over_heads,
)
from rlpheads.kernels.transforms import check_no_transform, may_transform

DEFAULT_MEMORY_BUDGET = 256 * 2**20
"""Bytes of exponentials that are kept for backward unless the caller says otherwise."""


def random_label_loss(
    features_BD: Tensor,
    weight_KD: Tensor,
    labels: Labels,
    *,
    bias_K: Tensor | None = None,
    pair: Pair | None = None,
    regularizer: str | None = None,
    joint: bool = False,
    impl: str = "auto",
    memory_budget: int | None = None,
) -> RandomLabelLoss:
    """Losses of a linear head z = X Wᵀ + b on random labels y, with p = softmax(z), row by row.

    The losses are neither weighted nor reduced: the caller multiplies, sums and calls backward, and each row's upstream
    gradient is honoured. Each loss trains one side only, as `RandomLabelLoss` says. With `regularizer=None, joint=False`
    no feature gradient is computed. Every value and gradient is exact at any margin: p_y → 1 loses no digits of 1 − p_y.

    Args:
        features_BD: (B, D), float16, bfloat16, float32 or float64; B may be 0. Autocast rounds them to its dtype, as for any
            linear layer.
        weight_KD: (K, D), of these dtypes, K ≥ 2. It may differ from the features in dtype; gradients have the dtype of
            what they belong to, and are accumulated in float32 (float64 if an input is float64).
        labels: (B,) int32 or int64 in [0, K); or (table, index, draw) for table[draw, index]: `table` is (M, N), `index` (B,),
            both int32 or int64, `draw` an integer. An index of −1 marks a padding row, whose results are finite and mean
            nothing. Ranges are checked on the CPU only; on a GPU one out of range makes the row's cross-entropy infinite
            with `triton`, and ends in a CUDA error with `reference`.
        bias_K: (K,), or None for a head without bias.
        pair: (labels, weight): second label of each row, as for mixup, in either form of `labels`, and the weight (B,) in
            [0, 1] of the *first*. Losses on p_y become the weighted sum of the two labels' losses; hit, bits and margin
            stay those of the first. No gradient reaches the weight.
        regularizer: minimised in the features: `unlikelihood` −log(1 − p_y); `uniform` −(1/K) Σ_j log p_j; `reversal` log
            p_y, unbounded below; `entropy` Σ_j p_j log p_j + log K = KL(p ‖ uniform); or None.
        joint: whether to return `joint_B`.
        impl: `reference` is plain PyTorch and holds B×K logits; `batched` holds them too, and takes all heads of a call in
            one; `tiled_cpu` streams the classes in tiles, on the CPU; `triton` does so on a CUDA GPU, with matrix products in
            the features' dtype (float16, bfloat16, float32). `auto` takes `tiled_cpu` on a CPU, but `batched` where labels or
            logits are few; on a GPU `triton`, but `batched` up to 512 labels and
            where `triton` does not run (`triton_loss.unsupported_reason`).
        memory_budget: bytes of exponentials that may be kept for backward, by default 256 MiB. What does not fit (all are
            B·K numbers, of 2 bytes for 16-bit features on a GPU, else of 4) is recomputed, for at most one matrix product
            more. `reference` and `batched` ignore it.

    Returns:
        A `RandomLabelLoss`. Backward may run repeatedly under `retain_graph`. Differentiating twice, forward-mode AD and the
        transforms of torch.func take `impl="reference"`; otherwise they raise a RuntimeError that says so.

    Raises:
        RuntimeError: for a function transform or forward-mode AD, unless `impl` is `reference`.
        ValueError: for tensors that are nested, sparse, in oneDNN's layout or on the device meta, dtypes other than float16,
            bfloat16, float32 and float64, shapes, dtypes or devices that do not fit together, D < 1, K < 2, labels outside
            [0, K) or weights outside [0, 1] (on the CPU), an unknown `regularizer` or `impl`, an `impl` that cannot run there,
            or a negative budget.
    """
    heads = _Heads([features_BD], [weight_KD], [bias_K])
    options = _Options(regularizer, joint, impl, memory_budget)
    return RandomLabelLoss._make(_in_shape(_losses_of_rows(heads, _GivenLabels([labels], [pair]), options), (-1,)))


def random_label_losses(
    features: Tensor | Sequence[Tensor],
    weights: Sequence[Tensor],
    labels: Sequence[Labels],
    *,
    biases: Sequence[Tensor | None] | None = None,
    pairs: Sequence[Pair | None] | None = None,
    regularizer: str | None = None,
    joint: bool = False,
    impl: str = "auto",
    memory_budget: int | None = None,
    consumer: Consumer | None = None,
    kept: KeptOperands | None = None,
) -> RandomLabelLosses:
    """`random_label_loss` of several heads in one call, which pays the fixed cost of a call once.

    Args:
        features: (B, D) features that all heads read, as the draws of one tap do; or a sequence with the features of each
            head, whose widths D may differ.
        weights: (K, D) weight of each head; K, B and the dtype of the sums are the same for all.
        labels: labels of each head.
        biases: bias (K,) or None of each head; None for heads without bias.
        pairs: pair or None of each head, pairs for all or for none; None for rows of one label.
        regularizer: as for one head; all heads have the same.
        joint: as for one head.
        impl: as for one head.
        memory_budget: as for one head; each head may keep so much.
        consumer: takes the gradient of each head's weight and bias in the backward pass, before it is made
            (`rlpheads.kernels.head_gradient`); None: `.grad` takes it, as it does with `reference` and
            `batched`, whose heads are small.
        kept: holds the weights in the dtype of the matrix products from one call to the next, for `triton`, which else casts
            those of another dtype at every call; None keeps nothing.

    Returns:
        A `RandomLabelLosses`, the rows of each head equal to what `random_label_loss` returns for it alone.

    Raises:
        ValueError: as for one head, with the head's number; lists that differ in length or are empty; heads that differ
            in B, K or the dtype of their sums; pairs for some of the heads only.
    """
    weights = list(weights)
    heads = _Heads(
        [features] * len(weights) if isinstance(features, Tensor) else list(features),
        weights,
        [None] * len(weights) if biases is None else list(biases),
    )
    given = _GivenLabels(list(labels), [None] * len(weights) if pairs is None else list(pairs))
    rows = _losses_of_rows(heads, given, _Options(regularizer, joint, impl, memory_budget, consumer, kept))
    return RandomLabelLosses._make(_in_shape(rows, (len(weights), -1)))


def _in_shape(rows: RandomLabelLoss, shape: tuple[int, ...]) -> list[Tensor | None]:
    """The members in a shape; those that have it are no views, which would cost a small call a tenth of its time."""
    return [each if each is None or each.ndim == len(shape) else each.view(shape) for each in rows]


class _GivenLabels(NamedTuple):
    """Labels of each head, and pair or None of each."""

    first: list[Labels]
    pairs: list[Pair | None]


class _Options(NamedTuple):
    """What all heads of a call have in common; see `random_label_losses`."""

    regularizer: str | None
    joint: bool
    impl: str
    memory_budget: int | None
    consumer: Consumer | None = None
    kept: KeptOperands | None = None


def _losses_of_rows(heads: "_Heads", labels: _GivenLabels, options: _Options) -> RandomLabelLoss:
    """Return the losses of all heads' rows, one head after another: (H, B) from `batched`, (R,) from the others."""
    _check_arguments(heads, labels, options)
    regularizer, joint, consumer = options.regularizer, options.joint, options.consumer
    chosen = _chosen_impl(heads, options)
    if options.impl != "reference" and may_transform():
        check_no_transform(_tensors(heads, labels))
    labels_of_rows = _gather_labels_of_rows(*labels, chosen, heads.features[0])
    heads = _cast_to_autocast_dtype(heads)
    if chosen == "batched":
        terms = BatchedTerms(regularizer, joint)
        return RandomLabelLoss(*batched_losses(WrittenHeads(*heads), labels_of_rows, terms))
    budget = DEFAULT_MEMORY_BUDGET if options.memory_budget is None else int(options.memory_budget)
    needs = heads.needs(regularizer, joint, budget)
    kernel = kernel_that_keeps(chosen, options.kept)
    kernel = kernel if consumer is None else HandingOver(chosen, kernel, consumer)
    if chosen == "triton":
        wanted = Wanted(regularizer, joint, needs.class_gradients, needs.feature_gradient, budget)
        last_stage = None if consumer is None else kernel
        return RandomLabelLoss(
            *whole_head_losses(WholeHeads(*heads, *labels_of_rows), wanted, options.kept, last_stage)
        )
    checked = arguments.check_label_values(LabelsOfRows(*labels_of_rows), heads.num_labels)
    if chosen == "reference":
        dtype = accumulation_dtype(heads.features[0], heads.weights[0])
        return _loss_by_reference(heads, row_labels(*checked, dtype), regularizer, joint)
    return _loss_by_stages(heads, checked, needs, joint, kernel)


def _check_arguments(heads: "_Heads", labels: _GivenLabels, options: _Options) -> None:
    """Check what was given, tensors once for all that have their shapes and dtypes."""

    def check() -> None:
        arguments.check_lists({**heads._asdict(), "labels": labels.first, "pairs": labels.pairs})
        arguments.check_heads(*heads)
        arguments.check_labels(heads.features, *labels)

    lists: tuple[list[Any], ...] = (*heads, *labels)
    arguments.PASSED.check(list(chain.from_iterable(lists)), tuple(map(len, lists)), check)
    arguments.check_regularizer(options.regularizer)
    arguments.check_memory_budget(options.memory_budget)


def _chosen_impl(heads: "_Heads", options: _Options) -> str:
    """Return the implementation that runs; the gradient of larger heads is the consumer's."""
    if options.impl == "auto" and options.consumer is not None:
        kernel_name = resolve_kernel(options.impl, heads.features[0], heads.num_labels)
        return "batched" if kernel_name == "reference" else kernel_name
    in_bfloat16 = product_dtype(heads.features, heads.weights) == torch.bfloat16
    return resolve_impl(options.impl, heads.features[0], heads.num_labels, in_bfloat16=in_bfloat16)


class _Heads(NamedTuple):
    """The features, weight and bias of each head."""

    features: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor | None]

    @property
    def num_labels(self) -> int:
        return self.weights[0].shape[0]

    def needs(self, regularizer: str | None, joint: bool, memory_budget: int) -> Needs:
        """Values and gradients that any of the heads needs."""
        with_gradient = torch.is_grad_enabled()
        parameters = [parameter for parameter in (*self.weights, *self.biases) if parameter is not None]
        return Needs(
            regularizer=regularizer,
            feature_gradient=with_gradient
            and (joint or regularizer is not None)
            and any(features_BD.requires_grad for features_BD in self.features),
            class_gradients=with_gradient and any(parameter.requires_grad for parameter in parameters),
            memory_budget=memory_budget,
        )


def _tensors(heads: _Heads, labels: _GivenLabels) -> list[Tensor]:
    """All tensors that were given."""
    given = [pair for pair in labels.pairs if pair is not None]
    of_labels = [
        tensor for source in (*labels.first, *(second for second, _ in given)) for tensor in tensors_of_labels(source)
    ]
    biases = [bias_K for bias_K in heads.biases if bias_K is not None]
    return [*heads.features, *heads.weights, *biases, *of_labels, *(weight_B for _, weight_B in given)]


def _gather_labels_of_rows(
    labels: list[Labels], pairs: list[Pair | None], chosen: str, features_BD: Tensor
) -> BatchedLabels:
    """Return the labels of all heads' rows, one head after another."""
    if len(labels) == 1 and isinstance(labels[0], Tensor) and pairs[0] is None:
        return BatchedLabels(labels[0].long().unsqueeze(0), None)
    by_triton = chosen == "triton" or (
        chosen == "batched" and uses_stacks(features_BD.device) and not unsupported_reason(features_BD)
    )
    given = [pair for pair in pairs if pair is not None]
    sources = [*labels, *(second for second, _ in given)]
    index_R = gather_labels(sources, gather_by_triton if by_triton else None)
    first_weight_R = concatenate([weight_B for _, weight_B in given]) if given else None
    return BatchedLabels(index_R.unflatten(0, (2 if given else 1, -1)), first_weight_R)


def _cast_to_autocast_dtype(heads: _Heads) -> _Heads:
    """Round the features as autocast would for a linear layer; sums and statistics keep their dtype."""
    device_type = heads.features[0].device.type
    if not torch.is_autocast_enabled(device_type):
        return heads
    dtype = torch.get_autocast_dtype(device_type)
    cast: dict[int, Tensor] = {}  # features that heads have in common stay one tensor
    features = [
        cast.setdefault(id(x_BD), x_BD if x_BD.dtype == torch.float64 else x_BD.to(dtype)) for x_BD in heads.features
    ]
    return heads._replace(features=features)


def _loss_by_stages(heads: _Heads, labels: LabelsOfRows, needs: Needs, joint: bool, kernel: Kernel) -> RandomLabelLoss:
    """Run one pass over the classes of each head for every value, then attach each loss's gradient route."""
    num_heads, num_labels = len(heads.weights), heads.num_labels
    ranges = [
        ClassRange(weight_KD, bias_K, 0, num_labels)
        for weight_KD, bias_K in zip(heads.weights, heads.biases, strict=True)
    ]
    stages, fixed = kernel_beneath(kernel), [features_BD.detach() for features_BD in heads.features]
    passes = pass_over_heads(stages, fixed, ranges, labels.index_LB, [needs] * num_heads)
    rows = head_rows(passes.packed_FR[None], labels, num_labels, needs.regularizer)

    def with_feature_gradient(value_R: Tensor, term: str) -> Tensor:
        if not needs.feature_gradient:
            return value_R
        gradients = feature_gradients_of_heads(stages, passes, rows, term, range(num_heads))
        return attach_feature_gradient(value_R, heads.features, gradients)

    loss = loss_without_gradient(rows)
    if needs.class_gradients:
        local_heads = [each.local for each in passes.heads]
        attached_R = attach_class_gradients(rows.cross_entropy_B, local_heads, rows, rows.of_cross_entropy, kernel)
        loss = loss._replace(cross_entropy_B=attached_R)
    if needs.regularizer is not None:
        loss = loss._replace(regularizer_B=with_feature_gradient(rows.regularizer_B, needs.regularizer))
    if joint:
        loss = loss._replace(joint_B=with_feature_gradient(rows.cross_entropy_B.clone(), "cross_entropy"))
    return loss


def _loss_by_reference(heads: _Heads, labels: RowLabels, regularizer: str | None, joint: bool) -> RandomLabelLoss:
    """Compute every value from materialised logits, twice, each time with one side detached."""
    head_RK = torch.cat([reference.logits(x_BD.detach(), w_KD, b_K) for x_BD, w_KD, b_K in zip(*heads, strict=True)])
    fixed_RK = features_RK = head_RK.detach()
    if joint or regularizer is not None:
        fixed = [ClassRange(w_KD, b_K, 0, len(w_KD)).detach() for _, w_KD, b_K in zip(*heads, strict=True)]
        features_RK = torch.cat(
            [
                reference.logits(x_BD, head.weight_KD, head.bias_K)
                for x_BD, head in zip(heads.features, fixed, strict=True)
            ]
        )
    log_p_R = F.logsigmoid(reference.log_odds(fixed_RK, labels.index_LB)[0])
    return RandomLabelLoss(
        cross_entropy_B=reference.cross_entropy(head_RK, labels),
        regularizer_B=None
        if regularizer is None
        else reference.REFERENCE_REGULARIZERS[regularizer](features_RK, labels),
        joint_B=reference.cross_entropy(features_RK, labels) if joint else None,
        hit_B=reference.is_argmax(fixed_RK, labels.index_LB[0]),
        bits_B=(math.log(heads.num_labels) + log_p_R) / math.log(2),
        margin_B=reference.margin(fixed_RK, labels.index_LB[0]),
        lse_B=fixed_RK.logsumexp(1),
    )
