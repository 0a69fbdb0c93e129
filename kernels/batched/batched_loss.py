"""Heads of few labels in one call: `impl="batched"` writes out the logits of all of them, and of each row its dL/dz.

Three products in all: logits, and the two gradients. On a CPU and in float32 each is one call of C++ (`batched_native`; of many
labels the logits are the library's), elsewhere one batched product of the library (`written_rows`). Memory: B·K numbers a
head for each gradient route.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.batched.batched_native import MAX_LABELS_OF_LOOPS, NativeBatch, native_batch
from rlpheads.kernels.batched.stacked_heads import (
    stacked_class_gradients,
    stacked_feature_gradients,
    stacked_rows,
    uses_stacks,
)
from rlpheads.kernels.batched.written_rows import (
    WrittenHeads,
    WrittenRows,
    batched_class_gradients,
    batched_feature_gradients,
    batched_logits,
    product_dtype,
    transposed_products,
    written_rows,
)
from rlpheads.kernels.first_derivative import refuse_second_derivative, save_with_anchor
from rlpheads.kernels.label_source import check_values_on_host
from rlpheads.kernels.operators import register_operator
from rlpheads.kernels.rows.partials import accumulation_dtype
from rlpheads.kernels.rows.row_softmax import row_labels


class BatchedTerms(NamedTuple):
    """What is computed beside the cross-entropy and the measures."""

    regularizer: str | None
    joint: bool


BatchedLosses = tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor, Tensor, Tensor]
"""The members of `RandomLabelLoss`, in their order."""


NUM_VALUES = 6
"""Members of `WrittenRows` before its gradients."""


class BatchedLabels(NamedTuple):
    """Labels of all heads' rows, one head after another."""

    index_LR: Tensor
    """int64, one or two labels for each row."""
    first_weight_R: Tensor | None
    """Weight of the first of two; None where rows have one."""


def batched_losses(heads: WrittenHeads, labels: BatchedLabels, terms: BatchedTerms) -> BatchedLosses:
    """The members of `RandomLabelLoss` of all heads' rows, with their gradient routes attached: (H, B) by C++, else (R,).

    Raises:
        ValueError: labels outside [0, K), or weights outside [0, 1] (on the CPU).
    """
    with_gradient = torch.is_grad_enabled()
    parameters = [*heads.weights, *heads.biases]
    for_classes = with_gradient and _some_require_gradients(parameters)
    for_features = with_gradient and _some_require_gradients(heads.features)
    # The joint term has the gradient of the cross-entropy.
    wanted = for_classes or (terms.joint and for_features), for_features and terms.regularizer is not None
    rows = _forward(heads, labels, terms.regularizer, wanted)
    cross_entropy_R, regularizer_R, joint_R = rows.cross_entropy_R, None, None
    if terms.joint:  # before the cross-entropy itself becomes a function of the weights
        joint_R = _attach_features(cross_entropy_R.clone(), rows.class_gradient_RK if for_features else None, heads)
    if terms.regularizer is not None:
        regularizer_R = _attach_features(rows.regularizer_R, rows.feature_gradient_RK, heads)
    if for_classes:
        cross_entropy_R = attach_classes(cross_entropy_R, rows.class_gradient_RK, heads)
    return cross_entropy_R, regularizer_R, joint_R, rows.hit_R, rows.bits_R, rows.margin_R, rows.lse_R


def _some_require_gradients(tensors: Iterable[Tensor | None]) -> bool:
    for each in tensors:  # noqa: SIM110 - a generator within `any` costs a call for each
        if each is not None and each.requires_grad:
            return True
    return False


def _attach_features(value_R: Tensor, gradient_RK: Tensor | None, heads: WrittenHeads) -> Tensor:
    """`value_R` as a function of the features alone, whose logits have this gradient; None where none is wanted."""
    if gradient_RK is None:
        return value_R
    places = _distinct_places(heads.features)
    distinct = [
        features_BD for number, features_BD in enumerate(heads.features) if places[number] not in places[:number]
    ]
    attached_R, _ = _FeatureRoute.apply((value_R, gradient_RK), places, *distinct, *heads.weights)
    return attached_R


def _distinct_places(features: Sequence[Tensor]) -> tuple[int, ...]:
    """Of each head the number of its features among the distinct ones, in the order of their first head."""
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(id(features_BD), len(numbers)) for features_BD in features)


def attach_classes(value_R: Tensor, gradient_RK: Tensor | None, heads: WrittenHeads) -> Tensor:
    """`value_R` as a function of the heads' weights and biases alone, whose logits have this gradient."""
    attached_R, _ = _ClassRoute.apply((value_R, gradient_RK), heads.features, *heads.weights, *heads.biases)
    return attached_R


Held = tuple[Tensor, Tensor]
"""Values, and their gradient in the logits, as a route takes them: unseen by autograd, so that the values need no copy."""


class _ClassRoute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, held: Held, features: list[Tensor], *parameters: Tensor | None) -> tuple[Tensor, ...]:
        value_R, gradient_RK = held
        ctx.dtypes = [None if parameter is None else parameter.dtype for parameter in parameters]
        weights = [parameter for parameter in parameters[: len(features)] if parameter is not None]
        ctx.product_dtype = product_dtype(features, weights)
        return save_with_anchor(ctx, (value_R,), gradient_RK, *features)

    @staticmethod
    @refuse_second_derivative
    def backward(ctx: Any, saved: Sequence[Tensor], upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient_RK, *features = saved
        wanted = ctx.needs_input_grad[2:]
        found = _class_gradients_op(features, gradient_RK, upstream, wanted, ctx.product_dtype)
        gradients = _in_dtypes(found, compress(ctx.dtypes, wanted))
        if all(wanted):
            return (None, None, *gradients)
        left = iter(gradients)
        return (None, None, *[next(left) if is_wanted else None for is_wanted in wanted])


def _in_dtypes(gradients: Iterable[Tensor], dtypes: Iterable[torch.dtype]) -> list[Tensor]:
    return [each if each.dtype == dtype else each.to(dtype) for each, dtype in zip(gradients, dtypes, strict=True)]


class _FeatureRoute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, held: Held, places: tuple[int, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        value_R, gradient_RK = held
        num_distinct = len(tensors) - len(places)
        ctx.places, ctx.dtypes = places, [features_BD.dtype for features_BD in tensors[:num_distinct]]
        return save_with_anchor(ctx, (value_R,), gradient_RK, *tensors[num_distinct:])

    @staticmethod
    @refuse_second_derivative
    def backward(ctx: Any, saved: Sequence[Tensor], upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient_RK, *weights = saved
        dtype = ctx.dtypes[0] if len(set(ctx.dtypes)) == 1 else gradient_RK.dtype
        sums = feature_gradients_op(weights, gradient_RK, upstream, ctx.places, dtype)
        return (None, None, *_in_dtypes(sums, ctx.dtypes), *[None] * len(weights))


def _forward(heads: WrittenHeads, labels: BatchedLabels, kind: str | None, wanted: tuple[bool, bool]) -> WrittenRows:
    found = _forward_op(*heads, *labels, kind, *wanted)
    matrices = iter(found[NUM_VALUES:])
    return WrittenRows._make([*found[:NUM_VALUES], *[next(matrices) if each else None for each in wanted]])


# --------------------------------------------------------------------------------------------------------- the operators
_HEADS = "Tensor[] features, Tensor[] weights, Tensor?[] biases, "


class _ForwardCall(NamedTuple):
    """Arguments of the forward operator."""

    features: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor | None]
    index_LR: Tensor
    first_weight_R: Tensor | None
    kind: str | None
    for_classes: bool
    for_features: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of the sums."""
        return accumulation_dtype(self.features[0], self.weights[0])

    @property
    def native(self) -> NativeBatch | None:
        """The calls of C++, if they take it."""
        return _native(accumulation_dtype(self.features[0], self.weights[0]), self.index_LR.device)


def _compute_rows(*arguments: Any) -> list[Tensor]:
    call = _ForwardCall(*arguments)
    heads, labels, device = WrittenHeads(*call[:3]), (call.index_LR, call.first_weight_R), call.index_LR.device
    wanted, num_labels, native = (call.for_classes, call.for_features), call.weights[0].shape[0], call.native
    if native is not None and num_labels <= MAX_LABELS_OF_LOOPS:
        rows = native.forward(heads, labels, call.kind, wanted)
    else:
        with torch.no_grad(), _without_autocast(device):  # the contexts cost what a small call does
            if uses_stacks(device):
                rows = stacked_rows(heads, labels, call.kind, wanted, call.dtype)
            elif native is not None:
                rows = native.forward(heads, labels, call.kind, wanted, transposed_products(heads, call.dtype))
            else:
                check_values_on_host(*labels, num_labels)
                logits_RK = batched_logits(heads, call.dtype)
                rows = written_rows(logits_RK, row_labels(*labels, call.dtype), call.kind, wanted)
    return [each for each in rows if each is not None]


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """No autocast inside; to enter torch's own context costs more than to ask whether there is need."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _shape_of_rows(*arguments: Any) -> list[Tensor]:
    call = _ForwardCall(*arguments)
    num_rows, num_labels = call.index_LR.shape[1], len(call.weights[0])
    of_values = (num_rows,) if call.native is None else (len(call.features), call.features[0].shape[0])

    def empty(*shape: int, dtype: torch.dtype = call.dtype) -> Tensor:
        return call.features[0].new_empty(shape, dtype=dtype)

    matrices = [empty(num_rows, num_labels) for wanted in (call.for_classes, call.for_features) if wanted]
    return [*(empty(*of_values) for _ in range(5)), empty(*of_values, dtype=torch.bool), *matrices]


def _compute_class_gradients(
    features: list[Tensor], gradient_RK: Tensor, upstream: Tensor, wanted: list[bool], dtype: torch.dtype
) -> list[Tensor]:
    """Those gradients that are wanted of the weights, in a dtype, then of the biases, in that of the logits' gradient.

    The upstream is that of the rows, in any shape.
    """
    native = _native_loops(gradient_RK, dtype)
    if native is not None:
        found = native.class_gradients(features, gradient_RK, upstream, wanted)
        if dtype == gradient_RK.dtype:
            return found
        num_weights = sum(wanted[: len(features)])
        return [*(each.to(dtype) for each in found[:num_weights]), *found[num_weights:]]
    upstream_R = upstream.reshape(-1)
    with _without_autocast(gradient_RK.device):
        if uses_stacks(gradient_RK.device):
            of_weights, of_biases = stacked_class_gradients(features, gradient_RK, upstream_R)
        else:
            of_weights, of_biases = batched_class_gradients(features, gradient_RK, upstream_R, dtype)
    return list(compress([*of_weights, *of_biases], wanted))


def _native(dtype: torch.dtype, device: torch.device) -> NativeBatch | None:
    """The calls of C++ for sums of a dtype, if they are to be taken there."""
    return None if uses_stacks(device) else native_batch(dtype, device)


def _native_loops(gradient_RK: Tensor, operands: torch.dtype) -> NativeBatch | None:
    """The calls that multiply by loops in C++; None where the library is faster with such operands, and without C++."""
    if operands != torch.float32 and gradient_RK.shape[1] > MAX_LABELS_OF_LOOPS:
        return None
    return _native(gradient_RK.dtype, gradient_RK.device)


def _shape_of_class_gradients(
    features: list[Tensor],
    gradient_RK: Tensor,
    upstream: Tensor,
    wanted: list[bool],
    dtype: torch.dtype,
) -> list[Tensor]:
    num_labels, empty = gradient_RK.shape[1], gradient_RK.new_empty
    of_weights = [empty(num_labels, features_BD.shape[1], dtype=dtype) for features_BD in features]
    return list(compress([*of_weights, *(empty(num_labels) for _ in features)], wanted))


def _compute_feature_gradients(
    weights: list[Tensor], gradient_RK: Tensor, upstream: Tensor, places: list[int], dtype: torch.dtype
) -> list[Tensor]:
    """Σ of v·G·W over the heads that read the same features, v the upstream of every row, in any shape; rounded once."""
    all_differ = max(places) + 1 == len(places)
    operands = product_dtype(weights, weights) if dtype == torch.bfloat16 else gradient_RK.dtype
    native = _native_loops(gradient_RK, operands)
    if native is not None:
        return [each.to(dtype) for each in native.feature_gradients(weights, gradient_RK, upstream, places)]
    upstream_R = upstream.reshape(-1)
    with _without_autocast(gradient_RK.device):
        if uses_stacks(gradient_RK.device):
            of_stacks = dtype if all_differ else gradient_RK.dtype
            each = stacked_feature_gradients(weights, gradient_RK, upstream_R, of_stacks)
        else:
            each = batched_feature_gradients(weights, gradient_RK, upstream_R, operands)
            each = each if all_differ else [each_BD.to(gradient_RK.dtype) for each_BD in each]
    return [each_BD.to(dtype) for each_BD in _sums(each, places)]


def _sums(each: list[Tensor], places: Sequence[int]) -> list[Tensor]:
    """Σ over the heads that read the same features."""
    if max(places) == 0 and len(each) > 1:
        return [torch.stack(each).sum(0)]
    sums: list[Tensor] = []
    for place, each_BD in zip(places, each, strict=True):
        if place == len(sums):
            sums.append(each_BD)
        else:
            sums[place] = sums[place] + each_BD
    return sums


def _shape_of_feature_gradients(
    weights: list[Tensor], gradient_RK: Tensor, upstream: Tensor, places: list[int], dtype: torch.dtype
) -> list[Tensor]:
    num_rows, widths = len(gradient_RK) // len(places), [weight_KD.shape[1] for weight_KD in weights]
    return [gradient_RK.new_empty(num_rows, widths[places.index(n)], dtype=dtype) for n in range(max(places) + 1)]


_forward_op = register_operator(
    "batched_forward",
    f"{_HEADS}Tensor labels, Tensor? first_weight, str? kind, bool for_classes, bool for_features) -> Tensor[]",
    _compute_rows,
    _shape_of_rows,
)
_class_gradients_op = register_operator(
    "batched_class_gradients",
    "Tensor[] features, Tensor gradient, Tensor upstream, bool[] wanted, ScalarType dtype) -> Tensor[]",
    _compute_class_gradients,
    _shape_of_class_gradients,
)
feature_gradients_op = register_operator(
    "batched_feature_gradients",
    "Tensor[] weights, Tensor gradient, Tensor upstream, int[] places, ScalarType dtype) -> Tensor[]",
    _compute_feature_gradients,
    _shape_of_feature_gradients,
)
