"""The two local stages of `tiled_cpu` for several heads in one call each: at a few thousand labels calls are felt."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from rlpheads.kernels.cpu.tiled_cpu import (
    GradientArguments,
    gradients_in_tiles,
    partials_in_tiles,
    shape_of_gradients_in_tiles,
    shape_of_partials_in_tiles,
)
from rlpheads.kernels.operators import register_operator
from rlpheads.kernels.rows.kernel import PassArguments
from rlpheads.kernels.rows.partials import (
    ClassRange,
    Exponentials,
    LogitGradient,
    Needs,
    Partials,
    Products,
    packed_partials,
)
from rlpheads.kernels.rows.row_softmax import by_head


def partials_of_heads(
    features: Sequence[Tensor], ranges: Sequence[ClassRange], labels_LR: Tensor, needs: Sequence[Needs]
) -> tuple[Tensor, list[tuple[Products, Exponentials]]]:
    """`tiled_cpu.local_partials` of several heads in one call: what is packed of all their rows, one head after another.

    Args:
        features: of each head.
        ranges: likewise, all of the same classes.
        labels_LR: of all rows.
        needs: of each head; all have the same memory budget, and those with a regularizer the same.
    """
    kind = next((each.regularizer for each in needs if each.regularizer is not None), None)
    packed_FR, *found = _heads_partials_op(
        *(list(features), [each.weight_KD for each in ranges], [each.bias_K for each in ranges], labels_LR),
        *(ranges[0].start, kind, [each.regularizer is not None for each in needs]),
        *([each.feature_gradient for each in needs], [each.class_gradients for each in needs]),
        needs[0].memory_budget,
    )
    of_heads = [found[first : first + 5] for first in range(0, len(found), 5)]
    return packed_FR, [(Products(*each[:3]), Exponentials(*each[3:])) for each in of_heads]


def class_gradients_of_heads(
    features: Sequence[Tensor],
    ranges: Sequence[ClassRange],
    labels_LR: Tensor,
    exponentials: Sequence[Exponentials],
    gradients: Sequence[LogitGradient],
    wanted: Sequence[tuple[bool, bool]],
) -> list[tuple[Tensor | None, Tensor | None]]:
    """`tiled_cpu.local_class_gradients` of several heads in one call, whose arguments are those of each."""
    found = _heads_gradients_op(
        *(list(features), [each.weight_KD for each in ranges], [each.bias_K for each in ranges], labels_LR),
        ranges[0].start,
        *([each.flat for each in exponentials], [each.tile_shift_CB for each in exponentials]),
        *([each.scale_CB for each in gradients], [each.label_LB for each in gradients]),
        *(list(flags) for flags in zip(*wanted, strict=True)),
    )
    pairs = zip(found[::2], found[1::2], wanted, strict=True)
    return [(weight if flags[0] else None, bias if flags[1] else None) for weight, bias, flags in pairs]


class _HeadsPass(NamedTuple):
    """What the operator of several heads' first stage takes."""

    features: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor | None]
    labels_LR: Tensor
    start: int
    kind: str | None
    is_regularized: list[bool]
    for_features: list[bool]
    for_classes: list[bool]
    memory_budget: int

    def of_each(self) -> list[PassArguments]:
        """Return what the first stage of each head takes."""
        num_heads = len(self.features)
        ranges = _ranges(self.weights, self.biases, self.start)
        needs = [
            Needs(self.kind if is_regularized else None, for_features, for_classes, self.memory_budget)
            for is_regularized, for_features, for_classes in zip(
                self.is_regularized, self.for_features, self.for_classes, strict=True
            )
        ]
        return list(map(PassArguments, self.features, ranges, by_head(self.labels_LR, num_heads), needs))


def _compute_partials_of_heads(*arguments: Any) -> list[Tensor]:
    found = [partials_in_tiles(each) for each in _HeadsPass(*arguments).of_each()]
    return [
        packed_partials([Partials(*each[:-5]) for each in found]),
        *(tensor for each in found for tensor in each[-5:]),
    ]


def _shape_of_partials_of_heads(*arguments: Any) -> list[Tensor]:
    given = _HeadsPass(*arguments)
    found = [shape_of_partials_in_tiles(each) for each in given.of_each()]
    packed_FR = found[0][0].new_empty(6 + given.labels_LR.shape[0], given.labels_LR.shape[1])
    return [packed_FR, *(tensor for each in found for tensor in each[-5:])]


class _HeadsGradients(NamedTuple):
    """What the operator of several heads' last stage takes."""

    features: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor | None]
    labels_LR: Tensor
    start: int
    flats: list[Tensor]
    tile_shifts: list[Tensor]
    scales: list[Tensor]
    label_gradients: list[Tensor]
    for_weights: list[bool]
    for_biases: list[bool]

    def of_each(self) -> list[GradientArguments]:
        """Return what the last stage of each head takes."""
        num_heads = len(self.features)
        ranges = _ranges(self.weights, self.biases, self.start)
        return list(
            map(
                GradientArguments,
                self.features,
                ranges,
                by_head(self.labels_LR, num_heads),
                map(Exponentials, self.flats, self.tile_shifts),
                map(LogitGradient, self.scales, self.label_gradients),
                self.for_weights,
                self.for_biases,
            )
        )


def _compute_gradients_of_heads(*arguments: Any) -> list[Tensor]:
    return [each for head in _HeadsGradients(*arguments).of_each() for each in gradients_in_tiles(head)]


def _shape_of_gradients_of_heads(*arguments: Any) -> list[Tensor]:
    return [each for head in _HeadsGradients(*arguments).of_each() for each in shape_of_gradients_in_tiles(head)]


def _ranges(weights: list[Tensor], biases: list[Tensor | None], start: int) -> list[ClassRange]:
    """The classes of each head; how many there are beside the range matters to no stage."""
    return [
        ClassRange(weight_KD, bias_K, start, len(weight_KD)) for weight_KD, bias_K in zip(weights, biases, strict=True)
    ]


_HEADS = "Tensor[] features, Tensor[] weights, Tensor?[] biases, Tensor labels, SymInt start, "
_heads_partials_op = register_operator(
    "tiled_cpu_partials_of_heads",
    f"{_HEADS}str? kind, bool[] is_regularized, bool[] for_features, bool[] for_classes, int memory_budget) -> Tensor[]",
    _compute_partials_of_heads,
    _shape_of_partials_of_heads,
)
_heads_gradients_op = register_operator(
    "tiled_cpu_gradients_of_heads",
    f"{_HEADS}Tensor[] flats, Tensor[] tile_shifts, Tensor[] scales, Tensor[] label_gradients, bool[] for_weights, "
    "bool[] for_biases) -> Tensor[]",
    _compute_gradients_of_heads,
    _shape_of_gradients_of_heads,
)
