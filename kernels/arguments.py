"""Argument checks of the loss: a clear ValueError each, and no host synchronisation on a GPU."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from numbers import Integral
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from rlpheads.kernels.label_source import Labels, Pair, check_values_on_host
from rlpheads.kernels.operators import register_operator
from rlpheads.kernels.rows.partials import accumulation_dtype
from rlpheads.kernels.rows.row_softmax import LabelsOfRows
from rlpheads.kernels.rows.terms import REGULARIZERS

LABEL_DTYPES = (torch.int32, torch.int64)
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOAT_NAMES = "float16, bfloat16, float32 or float64"


class PassedChecks:
    """Remembers the shapes, dtypes and devices for which a call's checks have passed, so that steps that repeat skip them."""

    def __init__(self, limit: int = 1024) -> None:
        self._passed: set[Any] = set()
        self._limit = limit

    def check(self, tensors: Sequence[Any], rest: object, check: Callable[[], None]) -> None:
        """Call `check` unless it has passed before for the like; torch.compile checks while it traces.

        `tensors` may hold Nones, and of anything else it is not remembered that it passed; `rest` is what else is checked.
        """
        if torch.compiler.is_compiling():
            return check()
        try:
            signature = rest, tuple([each if each is None else _checked_attributes(each) for each in tensors])
            if signature in self._passed:
                return None
        except (
            AttributeError,
            RuntimeError,
            TypeError,
        ):  # no tensor; nested, so without a shape; symbolic, so without a hash
            return check()
        check()
        if len(self._passed) >= self._limit:
            self._passed.clear()
        self._passed.add(signature)
        return None


_checked_attributes = attrgetter("shape", "dtype", "device", "layout", "is_nested")


PASSED = PassedChecks()
"""Of the process: what is checked does not depend on who calls."""


def check_heads(features: list[Tensor], weights: list[Tensor], biases: list[Tensor | None]) -> None:
    """Check every head, and that the heads of one call agree in what they must."""
    for number, (features_BD, weight_KD, bias_K) in enumerate(zip(features, weights, biases, strict=True)):
        try:
            check_head(features_BD, weight_KD, bias_K)
            _check_device("features", features_BD, features[0])
        except ValueError as error:
            raise _with_head_number(error, number, len(features)) from None
    if features[0].is_meta:
        raise ValueError("features must have values; they are on the device meta, which holds shapes alone")
    for what, values in (
        ("rows (B)", [len(features_BD) for features_BD in features]),
        ("labels (K)", [len(weight_KD) for weight_KD in weights]),
        ("dtype of their sums", [accumulation_dtype(*pair) for pair in zip(features, weights, strict=True)]),
    ):
        if len(set(values)) > 1:
            raise ValueError(f"the heads of one call must have the same {what}; got {values}: call once for each kind")


def check_lists(heads: dict[str, list[Any] | None]) -> None:
    """Check that there is a head, and one entry for each head in every list that is given."""
    lengths = {name: len(entries) for name, entries in heads.items() if entries is not None}
    if len(set(lengths.values())) > 1:
        given = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"every list must have one entry for each head; got {given}")
    if 0 in lengths.values():
        raise ValueError("at least one head is needed; got empty lists")


def check_head(features_BD: Tensor, weight_KD: Tensor, bias_K: Tensor | None) -> None:
    """Check the shapes, dtypes and devices of the features and the linear head."""
    named = {"features": features_BD, "weight": weight_KD} | ({} if bias_K is None else {"bias": bias_K})
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor; got {type(tensor).__name__}")
        _check_dense(name, tensor)
    if features_BD.ndim != 2 or weight_KD.ndim != 2 or features_BD.shape[1] != weight_KD.shape[1]:
        raise ValueError(
            "features must be (B, D) and weight (K, D) with the same D; "
            f"got features {tuple(features_BD.shape)} and weight {tuple(weight_KD.shape)}"
        )
    if features_BD.shape[1] < 1:
        raise ValueError(f"features must have a column (D) at least; got {tuple(features_BD.shape)}")
    num_labels = weight_KD.shape[0]
    if num_labels < 2:
        raise ValueError(f"at least 2 labels are needed; weight has {num_labels} row(s)")
    if bias_K is not None and bias_K.shape != (num_labels,):
        raise ValueError(f"bias must be ({num_labels},), one entry for each row of weight; got {tuple(bias_K.shape)}")
    for name, tensor in named.items():
        if tensor.dtype not in FLOAT_DTYPES:
            raise ValueError(f"{name} must be of a floating-point dtype ({FLOAT_NAMES}); got {tensor.dtype}")
        _check_device(name, tensor, features_BD)


def check_labels(features: list[Tensor], labels: list[Labels], pairs: list[Pair | None]) -> None:
    """Check the shapes, dtypes and devices of every head's labels, and of its pair if it has one."""
    num_pairs = sum(pair is not None for pair in pairs)
    if num_pairs not in (0, len(pairs)):
        raise ValueError(f"there must be pairs for all heads or for none; got a pair for {num_pairs} of {len(pairs)}")
    for number, (features_BD, head_labels, pair) in enumerate(zip(features, labels, pairs, strict=True)):
        try:
            _check_labels("labels", head_labels, features_BD)
            if pair is not None:
                _check_pair(pair, features_BD)
        except ValueError as error:
            raise _with_head_number(error, number, len(features)) from None


def check_known_name(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check that a name is among the choices; the error names the nearest."""
    if value in choices:
        return
    nearest = get_close_matches(str(value), choices, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"unknown {name} {value!r}; known are {', '.join(choices)}{hint}")


def check_regularizer(regularizer: str | None) -> None:
    """Check the kind of regularizer."""
    if regularizer is not None:
        check_known_name("regularizer", regularizer, tuple(REGULARIZERS))


def check_memory_budget(memory_budget: int | None) -> None:
    """Check the number of bytes."""
    if memory_budget is not None and (
        isinstance(memory_budget, bool) or not isinstance(memory_budget, Integral) or memory_budget < 0
    ):
        raise ValueError(f"memory_budget must be a number of bytes, 0 or more, or None; got {memory_budget!r}")


def _with_head_number(error: ValueError, number: int, num_heads: int) -> ValueError:
    """Return the same error with the head's number in front where there are several."""
    return ValueError(f"head {number}: {error}") if num_heads > 1 else error


def _check_pair(pair: Pair, features_BD: Tensor) -> None:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ValueError(f"pair must be a tuple (labels, weight of the first label); got {type(pair).__name__}")
    labels, weight_B = pair
    _check_labels("pair's labels", labels, features_BD)
    if not isinstance(weight_B, Tensor):
        raise ValueError(f"pair's weight must be a tensor; got {type(weight_B).__name__}")
    _check_dense("pair's weight", weight_B)
    if weight_B.shape != features_BD.shape[:1] or weight_B.dtype not in FLOAT_DTYPES:
        raise ValueError(
            f"pair's weight must be floating-point ({FLOAT_NAMES}) and ({len(features_BD)},), one for each row of features; "
            f"got {weight_B.dtype} {tuple(weight_B.shape)}"
        )
    _check_device("pair's weight", weight_B, features_BD)


def _check_labels(name: str, labels: Labels, features_BD: Tensor) -> None:
    if isinstance(labels, Tensor):
        _check_indices(name, labels, features_BD)
        return
    if not isinstance(labels, tuple) or len(labels) != 3 or not all(isinstance(part, Tensor) for part in labels[:2]):
        raise ValueError(f"{name} must be a tensor or a tuple (table, index, draw); got {_type_name(labels)}")
    table_MN, index_B, draw = labels
    _check_dense(f"the table of {name}", table_MN)
    if table_MN.ndim != 2 or table_MN.dtype not in LABEL_DTYPES or table_MN.shape[1] == 0:
        raise ValueError(
            f"the table of {name} must be int32 or int64 and (M, N), a row for each draw and a column for each sample; "
            f"got {table_MN.dtype} {tuple(table_MN.shape)}"
        )
    _check_device(f"the table of {name}", table_MN, features_BD)
    _check_indices(f"the index of {name}", index_B, features_BD)
    if isinstance(draw, bool) or not isinstance(draw, int) or not 0 <= draw < len(table_MN):
        raise ValueError(
            f"the draw of {name} must be an integer in [0, {len(table_MN)}), a row of its table; got {draw!r}"
        )


def _type_name(value: object) -> str:
    if not isinstance(value, tuple):
        return type(value).__name__
    return f"a tuple ({', '.join(type(part).__name__ for part in value)})"


def _check_dense(name: str, tensor: Tensor) -> None:
    """Check that a tensor is neither nested, sparse nor in oneDNN's layout; before its shape, which some of them lack."""
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "a nested tensor" if tensor.is_nested else f"the layout {tensor.layout}"
        raise ValueError(f"{name} must be a dense tensor (torch.strided), not nested, sparse or oneDNN's; got {kind}")


def _check_indices(name: str, indices_B: Tensor, features_BD: Tensor) -> None:
    _check_dense(name, indices_B)
    if indices_B.dtype not in LABEL_DTYPES:
        raise ValueError(f"{name} must be int32 or int64; got {indices_B.dtype}")
    if indices_B.shape != features_BD.shape[:1]:
        raise ValueError(
            f"{name} must be ({len(features_BD)},), one for each row of features; got {tuple(indices_B.shape)}"
        )
    _check_device(name, indices_B, features_BD)


def _check_device(name: str, tensor: Tensor | None, features_BD: Tensor) -> None:
    if tensor is not None and tensor.device != features_BD.device:
        raise ValueError(f"{name} must be on the features' device {features_BD.device}; got {tensor.device}")


def check_label_values(labels: LabelsOfRows, num_labels: int) -> LabelsOfRows:
    """Check that labels lie in [0, K) and weights in [0, 1], and return them; unchecked on a GPU, as that would wait for it."""
    if labels.index_LB.device.type != "cpu":
        return labels
    return labels._replace(index_LB=_check_values_op(*labels, num_labels))


def _checked(labels_LB: Tensor, first_weight_B: Tensor | None, num_labels: int) -> Tensor:
    """Check in an operator, since Python cannot branch on values under FakeTensorMode or torch.compile."""
    check_values_on_host(labels_LB, first_weight_B, num_labels)
    return labels_LB.clone()


_check_values_op = register_operator(
    "check_label_values",
    "Tensor labels, Tensor? first_weight, SymInt num_labels) -> Tensor",
    _checked,
    lambda labels_LB, _first_weight_B, _num_labels: torch.empty_like(labels_LB),
)
